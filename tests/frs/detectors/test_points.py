"""Which object a point is to find: against torchvision's own assignment, and mmdetection's rules written out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from frs.data import read_coco
from frs.detectors.matching import Matches
from frs.detectors.points import assign, centerness, centres, grid_cells
from tests.frs.detectors.test_matching_and_losses import targets

STRIDES = (8, 16, 32, 64, 128)


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    return [(height // stride, width // stride) for stride in STRIDES]


def scattered(count: int, seed: int, height: int, width: int) -> Tensor:
    """Boxes of 4 to 400 px; every second one with whole coordinates, so that points fall on bounds."""
    generator = torch.Generator().manual_seed(seed)
    sides = 4 * 100 ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - sides / 2
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes[::2] = boxes[::2].round()
    return boxes.clamp(min=0)


def torchvisions(images: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """torchvision's anchors (N, 4), and the object of each point of each image (B, N), -1 for none."""
    maps = [torch.zeros(len(images), 1, *shape) for shape in shapes(height, width)]
    padded = ImageList(torch.zeros(len(images), 3, height, width), [(height, width)] * len(images))
    anchors = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))(padded, maps)
    model: Any = SimpleNamespace(center_sampling_radius=1.5, head=SimpleNamespace(compute_loss=lambda *all_: all_[3]))
    annotations = [{"boxes": boxes} for boxes in images]
    matched: Any = FCOS.compute_loss(model, annotations, {}, anchors, [m[0, 0].numel() for m in maps])
    return anchors[0], torch.stack(matched)


def check_against_torchvision(images: list[Tensor], height: int, width: int) -> int:
    cells = grid_cells(shapes(height, width), STRIDES, torchvision=True)
    anchors, expected = torchvisions(images, height, width)
    assert torch.equal(cells, anchors)
    found = assign(cells, targets(images), radius=1.5, torchvision=True)
    assert torch.equal(torch.where(found.positive, found.box, -1), expected)
    assert torch.equal(found.negative, expected < 0)
    return int(found.positive.sum())


@pytest.mark.parametrize("seed", range(6))
def test_the_assignment_is_torchvisions(seed: int) -> None:
    images = [scattered(1 + 9 * seed, seed, 256, 384), scattered(3, seed + 50, 256, 384), torch.zeros(0, 4)]
    assert check_against_torchvision(images, 256, 384) > 4


def test_areas_are_compared_as_roughly_as_torchvision_does() -> None:
    """Of 2500 and 2498 square pixels the first is the smaller: 1e8 minus either is one float32."""
    assert check_against_torchvision([torch.tensor([[10.0, 10, 60, 60], [10, 10, 60, 59.96]])], 256, 256) > 4


@pytest.mark.skipif("FRS_DATA" not in os.environ, reason="FRS_DATA names no folder with COCO data sets")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_assignment_of_real_annotations_is_torchvisions(split: str) -> None:
    """FRS_DATA/tiny_coco/annotations/instances_<split>.json."""
    folder = Path(os.environ["FRS_DATA"]) / "tiny_coco"
    data = read_coco(folder / "annotations" / f"instances_{split}.json", folder / split)
    images = [torch.from_numpy(image.boxes[~image.crowd]) for image in data.images]
    found = sum(check_against_torchvision(images[i : i + 10], 640, 640) for i in range(0, len(images), 10))
    assert found > 1000


def mmdetections(boxes: Any, cells: Any, radius: float, last: int = 128) -> list[int]:
    """The object of each point, -1 for none: the rules one by one. last: stride of the last level."""
    answers = []
    for x0, y0, x1, y1 in cells:
        x, y, stride = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0
        low, high = (-1 if stride == 8 else 4 * stride), (1e8 if stride == last else 8 * stride)
        best, smallest = -1, float("inf")
        for g, (left, top, right, bottom) in enumerate(boxes):
            inner = [left, top, right, bottom]
            if radius:
                cx, cy = (left + right) / 2, (top + bottom) / 2
                inner = [
                    max(left, cx - radius * stride),
                    max(top, cy - radius * stride),
                    min(right, cx + radius * stride),
                    min(bottom, cy + radius * stride),
                ]
            inside = inner[0] < x < inner[2] and inner[1] < y < inner[3]
            farthest = max(x - left, y - top, right - x, bottom - y)
            size = (right - left) * (bottom - top)
            if inside and low <= farthest <= high and size < smallest:
                best, smallest = g, size
        answers.append(best)
    return answers


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_mmdetections(seed: int, radius: float) -> None:
    images = [scattered(12, seed, 256, 384), scattered(4, seed + 50, 256, 384)]
    cells = grid_cells(shapes(256, 384), STRIDES, torchvision=False)
    assert centres(cells)[:2].tolist() == [[4, 4], [12, 4]]
    assert centres(cells)[32 * 48].tolist() == [8, 8]
    found = assign(cells, targets(images), radius=radius, torchvision=False)
    for i, boxes in enumerate(images):
        expected = torch.tensor(mmdetections(boxes.double().numpy(), cells.double().numpy(), radius))
        assert torch.equal(torch.where(found.positive[i], found.box[i], -1), expected)
    assert int(found.positive.sum()) > 20
    assert torch.equal(found.negative, ~found.positive)


def at(found: Matches, cells: Tensor, x: float, y: float, stride: int) -> bool:
    place = (centres(cells) == torch.tensor([x, y])).all(dim=1) & (cells[:, 2] - cells[:, 0] == stride)
    assert int(place.sum()) == 1
    return bool(found.positive[0, place])


def test_a_bound_belongs_to_both_levels_or_to_none() -> None:
    ours = grid_cells(shapes(256, 256), STRIDES, torchvision=False)
    found = assign(ours, targets([torch.tensor([[4.0, 4, 132, 132]])]), radius=0.0, torchvision=False)
    assert at(found, ours, 68, 68, 8)
    found = assign(ours, targets([torch.tensor([[8.0, 8, 136, 136]])]), radius=0.0, torchvision=False)
    assert at(found, ours, 72, 72, 16)
    theirs = grid_cells(shapes(256, 256), STRIDES, torchvision=True)
    found = assign(theirs, targets([torch.tensor([[0.0, 0, 128, 128]])]), radius=0.0, torchvision=True)
    assert not at(found, theirs, 64, 64, 8)
    assert not at(found, theirs, 64, 64, 16)


@pytest.mark.parametrize("torchvision", [False, True])
def test_the_smallest_object_that_holds_a_point_is_found(torchvision: bool) -> None:
    cells = grid_cells(shapes(128, 128), STRIDES, torchvision=torchvision)
    x, y = centres(cells)[17].tolist()
    tiny = torch.tensor([[x - 0.25, y - 0.5, x + 0.5, y + 0.25]])
    found = assign(cells, targets([tiny]), radius=0.0, torchvision=torchvision)
    assert found.positive[0].nonzero().flatten().tolist() == [17]


def test_a_crowd_region_makes_nothing_right_or_wrong() -> None:
    """Cells of 8 px, of which 45 x 45 px cover more than half up to the sixth: 5 / 8 of the side on each axis at most."""
    box, crowd = torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([[0.0, 0, 45, 45]])
    cells = grid_cells(shapes(128, 128), STRIDES, torchvision=False)
    found = assign(cells, targets([torch.cat([box, crowd])], [1]), radius=0.0, torchvision=False)
    without = assign(cells, targets([box]), radius=0.0, torchvision=False)
    neither = ~(found.positive | found.negative)[0, :256].reshape(16, 16).numpy()
    expected = np.zeros((16, 16), dtype=bool)
    expected[:6, :6] = True
    expected[5, 5] = False  # 25 of its 64 square pixels
    np.testing.assert_array_equal(neither, expected)
    small = torch.tensor([[66.0, 66, 70, 70]])  # around a point, and a quarter of its cell
    found_with_small = assign(cells, targets([torch.cat([box, crowd, small])], [2]), radius=0.0, torchvision=False)
    assert torch.equal(found_with_small.positive, found.positive)
    assert torch.equal(found_with_small.negative, found.negative)
    clear = found.positive | found.negative
    assert torch.equal(found.positive, without.positive & clear)
    assert bool((without.positive & ~clear).any())
    assert bool((without.positive & clear).any())


def test_padding_is_nobodys_object() -> None:
    cells = grid_cells(shapes(128, 128), STRIDES, torchvision=False)
    alone = assign(cells, targets([torch.zeros(0, 4)]), radius=0.0, torchvision=False)
    padded = assign(cells, targets([torch.zeros(0, 4), scattered(5, 1, 128, 128)]), radius=0.0, torchvision=False)
    for found in (alone, padded):
        assert bool(found.negative[0].all())
        assert not bool(found.positive[0].any())


def test_centerness_by_hand() -> None:
    """sqrt(1/3 * 2/8) between sides at 1 and 3, 2 and 8 pixels; 1 in the middle; 0 on a side."""
    points = torch.tensor([[11.0, 22], [12, 25], [10, 25]])
    boxes = torch.tensor([[10.0, 20, 14, 30]]).expand(3, 4)
    torch.testing.assert_close(centerness(points, boxes), torch.tensor([(1 / 3 * 2 / 8) ** 0.5, 1.0, 0.0]))
