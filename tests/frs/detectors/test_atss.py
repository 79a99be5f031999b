"""ATSS against its algorithm written out in numpy, anchor by anchor, in float64."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frs.data import read_coco
from frs.detectors.anchors import base_anchors, grid_anchors
from frs.detectors.atss import assign
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets


def levels_of(height: int, width: int, strides: tuple[int, ...] = (8, 16, 32, 64, 128)) -> list[Tensor]:
    shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return [
        grid_anchors([shape], [stride], [base_anchors(stride, 8.0, 1, (1.0,))])
        for shape, stride in zip(shapes, strides, strict=True)
    ]


LEVELS = levels_of(256, 320)
ANCHORS = torch.cat(LEVELS)


def iou(a: Any, b: Any) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return float(w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h))


def owners(levels: list[Any], boxes: Any, nearest: int = 9) -> list[int]:
    """For each anchor the object that it is to find, or -1: Zhang et al. 2020, algorithm 1."""
    anchors = [anchor for level in levels for anchor in level]
    best: list[tuple[float, int]] = [(-1.0, -1)] * len(anchors)
    for g, box in enumerate(boxes):
        candidates: list[int] = []
        first = 0
        for level in levels:
            far = [np.hypot((a[0] + a[2] - box[0] - box[2]) / 2, (a[1] + a[3] - box[1] - box[3]) / 2) for a in level]
            candidates += [first + int(i) for i in np.argsort(far, kind="stable")[:nearest]]
            first += len(level)
        overlaps = [iou(anchors[i], box) for i in candidates]
        threshold = np.mean(overlaps) + np.std(overlaps, ddof=1)
        for i, overlap in zip(candidates, overlaps, strict=True):
            x, y = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside and overlap > best[i][0]:
                best[i] = (overlap, g)
    return [g for _, g in best]


def compare(levels: list[Tensor], images: list[Tensor]) -> int:
    """How many positives there are; all must be those of the loops."""
    found = assign(levels, targets(images))
    loops = [level.double().numpy() for level in levels]
    positives = 0
    for i, boxes in enumerate(images):
        expected = torch.tensor(owners(loops, boxes.double().numpy()))
        assert torch.equal(found.positive[i], expected >= 0)
        assert torch.equal(found.negative[i], expected < 0)
        assert torch.equal(found.box[i], expected.clamp(min=0))
        positives += int(found.positive[i].sum())
    return positives


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_the_algorithm_written_out(seed: int) -> None:
    assert compare(LEVELS, [random_boxes(1 + seed * 3, seed, 150), random_boxes(2, seed + 100, 60)]) > 4


@pytest.mark.skipif("FRS_DATA" not in os.environ, reason="FRS_DATA names no folder with COCO data sets")
def test_assignment_of_real_annotations() -> None:
    folder = Path(os.environ["FRS_DATA"]) / "tiny_coco"
    data = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    generator = torch.Generator().manual_seed(1)
    boxes = [torch.from_numpy(image.boxes[~image.crowd]) for image in data.images[:25]]
    # Not on whole pixels: where two anchors are equally near, either may be the ninth.
    moved = [b + (torch.rand(len(b), 1, generator=generator) - 0.5) for b in boxes]
    assert sum(len(b) for b in moved) > 100
    assert compare(levels_of(640, 640), moved) > 500


def test_few_anchors_on_a_level_are_all_candidates() -> None:
    assert compare(levels_of(64, 64), [random_boxes(4, 3, 40)]) > 0


def test_an_object_without_a_centre_inside_finds_nobody() -> None:
    """Anchors are centred at multiples of 8."""
    found = assign(LEVELS, targets([torch.tensor([[41.0, 41, 47, 47]])]))
    assert not bool(found.positive.any())
    assert bool(found.negative.all())


def test_of_two_objects_the_one_that_is_overlapped_more() -> None:
    tight, loose = torch.tensor([100.0, 100, 164, 164]), torch.tensor([90.0, 90, 190, 190])
    anchor = int((ANCHORS == torch.tensor([96.0, 96, 160, 160])).all(dim=1).nonzero())
    for boxes, owner in (([tight, loose], 0), ([loose, tight], 1)):
        found = assign(LEVELS, targets([torch.stack(boxes)]))
        assert bool(found.positive[0, anchor])
        assert int(found.box[0, anchor]) == owner


def test_padding_is_nobodys_object() -> None:
    boxes = random_boxes(3, 1, 90)
    alone = assign(LEVELS, targets([boxes]))
    padded = assign(LEVELS, targets([boxes, random_boxes(9, 2, 90)]))
    assert torch.equal(alone.positive[0], padded.positive[0])
    assert torch.equal(alone.box[0], padded.box[0])


def test_without_objects_everything_is_background() -> None:
    for images in ([torch.zeros(0, 4)], [torch.zeros(0, 4), random_boxes(2, 5)]):
        found = assign(LEVELS, targets(images))
        assert bool(found.negative[0].all())
        assert not bool(found.positive[0].any())


def test_a_crowd_region_makes_nothing_right_or_wrong() -> None:
    """The second region is smaller than half of any anchor: it covers none, and is no object either."""
    box, crowd = torch.tensor([[90.0, 90, 170, 170]]), torch.tensor([[120.0, 60, 300, 230], [10, 180, 50, 220]])
    found = assign(LEVELS, targets([torch.cat([box, crowd])], [2]))
    without = assign(LEVELS, targets([box]))
    shared = [max(0.0, min(a[2], 300) - max(a[0], 120)) * max(0.0, min(a[3], 230) - max(a[1], 60)) for a in ANCHORS]
    covered = torch.tensor(
        [float(part / ((a[2] - a[0]) * (a[3] - a[1]))) > 0.5 for part, a in zip(shared, ANCHORS, strict=True)]
    )
    assert bool((covered & without.positive[0]).any())
    assert bool((~covered & without.positive[0]).any())
    assert not bool((found.positive[0] | found.negative[0])[covered].any())
    assert torch.equal(found.positive[0], without.positive[0] & ~covered)
    assert torch.equal(found.negative[0], without.negative[0] & ~covered)
