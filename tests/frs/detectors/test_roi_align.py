from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from frs.detectors.roi_align import level_of, pooled, sampled

HEIGHT, WIDTH = 256, 320
STRIDES = (4, 8, 16, 32)


def pyramid(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, HEIGHT // s, WIDTH // s, generator=generator) for s in STRIDES]


def scattered(count: int, seed: int = 1) -> Tensor:
    """(2, count, 4): anywhere and of any size; a third of them on a border, a third narrow."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, count, 2, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    corners[:, ::3, 1] = corners[:, ::3, 0] + 2 * torch.rand(2, len(range(0, count, 3)), 2, generator=generator)
    corners[:, 1::3] = corners[:, 1::3] * 1.5 - torch.tensor([WIDTH, HEIGHT]) / 4
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return torch.minimum(boxes.clamp(min=0.0), limit)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("level", range(4))
def test_sampling_the_canvas_is_torchvisions_roi_align(level: int, aligned: bool) -> None:
    features, boxes = pyramid(), scattered(600)
    ours = sampled(features, boxes, torch.full((2, 600), level), STRIDES, aligned=aligned)
    for image in range(2):
        theirs = roi_align(features[level][image : image + 1], [boxes[image]], 7, 1 / STRIDES[level], 2, aligned)
        torch.testing.assert_close(ours[image], theirs, atol=1e-4, rtol=0)


def test_samples_outside_the_map_count_nothing() -> None:
    """Without alignment a narrow box at the right border is as wide as a place, which reaches over the map's end."""
    features = [torch.ones_like(level) for level in pyramid()]
    box = torch.tensor([[[WIDTH - 1.6, 10.0, float(WIDTH), 40.0]]] * 2)
    ours = sampled(features, box, torch.zeros(2, 1, dtype=torch.int64), STRIDES, aligned=False)
    assert ours.min() == 0.0
    assert ours.max() == pytest.approx(1.0)
    torch.testing.assert_close(ours[0], roi_align(features[0][:1], [box[0]], 7, 1 / 4, 2, False), atol=1e-5, rtol=0)


def test_each_box_is_taken_from_its_own_level() -> None:
    """Both ways of pooling, against torchvision's pooler, which chooses the levels itself."""
    features, boxes = pyramid(), scattered(300)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    named = OrderedDict(zip("0123", features, strict=True))
    theirs = pooler(named, list(boxes), [(HEIGHT, WIDTH)] * 2).reshape(2, 300, 5, 7, 7)
    level = level_of(boxes, 4, torchvision=True)
    assert set(level.unique().tolist()) == {0, 1, 2}
    torch.testing.assert_close(sampled(features, boxes, level, STRIDES, aligned=False), theirs, atol=1e-4, rtol=0)
    image = torch.arange(2).repeat_interleave(300)
    flat = pooled(features, boxes.flatten(0, 1), image, level.flatten(), STRIDES, samples=2, aligned=False)
    torch.testing.assert_close(flat, theirs.flatten(0, 1))


def test_levels_are_torchvisions_and_mmdetections() -> None:
    generator = torch.Generator().manual_seed(3)
    sides = torch.exp(torch.rand(5000, 2, generator=generator) * 8)  # 1 .. 2981 px
    sides = torch.cat([sides, torch.tensor([[56.0, 56], [112, 112], [224, 224], [448, 448], [0, 9]])])
    boxes = torch.cat([torch.zeros_like(sides), sides], dim=1)
    assert torch.equal(level_of(boxes, 4, torchvision=True), LevelMapper(2, 5)([boxes]))
    size = np.sqrt(sides.prod(dim=1).numpy().astype(np.float64))
    expected = np.floor(np.log2(size / 56 + 1e-6)).clip(0, 3).astype(int)
    assert level_of(boxes, 4, torchvision=False).tolist() == expected.tolist()
    assert level_of(boxes, 4, torchvision=False)[-4:].tolist() == [1, 2, 3, 0]


def test_features_learn_from_what_is_pooled() -> None:
    features = [level.requires_grad_() for level in pyramid()]
    boxes = scattered(60)[0]
    level = level_of(boxes, 4, torchvision=False)
    image = torch.zeros(60, dtype=torch.int64)
    torch.autograd.backward(pooled(features, boxes, image, level, STRIDES, samples=0, aligned=True).sum())
    for number, feature in enumerate(features):
        assert feature.grad is not None
        assert bool(feature.grad[0].any()) == bool((level == number).any())
        assert not bool(feature.grad[1].any())
