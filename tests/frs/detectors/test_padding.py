"""In a batch with larger images, an image's anchors are found as they would be alone, as mmdetection's valid flags have it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from frs.detectors import Targets
from frs.detectors.anchors import base_anchors, grid_anchors, places_within
from frs.detectors.atss import assign
from frs.detectors.matching import Matches, match
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets

STRIDES = (8, 16, 32, 64, 128)
SIZES = [(150, 250), (256, 320), (97, 129)]  # alone 160 x 256, 256 x 320, 128 x 160


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Of convolutions of stride two, one upon the other."""
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def levels(height: int, width: int, each: int) -> list[Tensor]:
    ratios = (0.5, 1.0, 2.0)[:each] if each > 1 else (1.0,)
    return [
        grid_anchors([shape], [stride], [base_anchors(stride, 4.0, 1, ratios)])
        for shape, stride in zip(shapes(height, width), STRIDES, strict=True)
    ]


def coordinates(anchors: Tensor, chosen: Tensor, box: Tensor) -> set[tuple[float, ...]]:
    return {(*anchor, owner) for anchor, owner in zip(anchors[chosen].tolist(), box[chosen].tolist(), strict=True)}


def found(how: str, height: int, width: int, wanted: Targets, within: Tensor | None) -> tuple[Tensor, Matches]:
    made = levels(height, width, 1 if how == "atss" else 3)
    anchors = torch.cat(made)
    return anchors, assign(made, wanted, within=within) if how == "atss" else match(anchors, wanted, within=within)


@pytest.mark.parametrize("how", ["atss", "iou"])
@pytest.mark.parametrize("seed", range(4))
def test_an_image_is_assigned_as_if_it_were_alone(how: str, seed: int) -> None:
    boxes = [
        torch.cat(
            [random_boxes(6, 10 * seed + i, min(size) - 1), torch.tensor([[size[1] - 60.0, 5, size[1], size[0]]])]
        )
        for i, size in enumerate(SIZES)
    ]
    sizes = torch.tensor(SIZES)
    within = places_within(shapes(256, 320), STRIDES, 1 if how == "atss" else 3, sizes)
    anchors, together = found(how, 256, 320, targets(boxes), within)
    for i, (height, width) in enumerate(SIZES):
        own, alone = found(how, height + -height % 32, width + -width % 32, targets([boxes[i]]), None)
        assert bool(alone.positive.any())
        for ours, theirs in ((together.positive, alone.positive), (together.negative, alone.negative)):
            assert coordinates(anchors, ours[i], together.box[i]) == coordinates(own, theirs[0], alone.box[0])
        assert not bool((together.positive[i] | together.negative[i])[~within[i]].any())
    assert bool(within[1].all())


@pytest.mark.parametrize("how", ["atss", "iou"])
def test_a_batch_without_a_box_has_no_background_beyond_its_images(how: str) -> None:
    within = places_within(shapes(256, 320), STRIDES, 1 if how == "atss" else 3, torch.tensor(SIZES))
    _, matches = found(how, 256, 320, targets([torch.zeros(0, 4)] * 3), within)
    assert torch.equal(matches.negative, within)
    assert not bool(matches.positive.any())
