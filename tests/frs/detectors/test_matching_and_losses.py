from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from frs.detectors import Targets
from frs.detectors.anchors import base_anchors, grid_anchors
from frs.detectors.matching import match
from tests.frs.detectors.test_boxes_and_anchors import random_boxes

ANCHORS = grid_anchors([(16, 16), (8, 8)], (8, 16), [base_anchors(s, 3.0, 2, (0.5, 1.0, 2.0)) for s in (8, 16)])


def targets(boxes: list[Tensor], crowds: list[int] | None = None) -> Targets:
    """Padded targets; the last `crowds[i]` boxes of image i are crowd regions."""
    crowds = crowds or [0] * len(boxes)
    most = max(len(b) for b in boxes)
    made = Targets(
        torch.zeros(len(boxes), most, 4),
        torch.zeros(len(boxes), most, dtype=torch.int64),
        torch.zeros(len(boxes), most, dtype=torch.bool),
        torch.zeros(len(boxes), most, dtype=torch.bool),
    )
    for i, (b, crowd) in enumerate(zip(boxes, crowds, strict=True)):
        made.boxes[i, : len(b)] = b
        made.valid[i, : len(b) - crowd] = True
        made.ignore[i, len(b) - crowd : len(b)] = True
    return made


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_torchvisions(seed: int) -> None:
    images = [random_boxes(1 + seed * 3, seed, 90), random_boxes(2, seed + 100, 60)]
    found = match(ANCHORS, targets(images))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for i, boxes in enumerate(images):
        overlap = box_iou(boxes, ANCHORS)
        # torchvision revives every anchor that ties an object's best overlap, even one of 0; ours must overlap.
        touched = (overlap.amax(dim=1) > 0).nonzero()[:, 0]
        expected = matcher(overlap[touched])
        positive = expected >= 0
        assert torch.equal(found.positive[i], positive)
        assert torch.equal(found.negative[i], expected == Matcher.BELOW_LOW_THRESHOLD)
        # A revived anchor keeps the object that it overlaps most, as torchvision's does.
        assert torch.equal(found.box[i][positive], touched[expected[positive]])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_matching_is_mmdetections_rule_written_out(seed: int, least: float) -> None:
    images = [random_boxes(1 + seed * 3, seed, 90), random_boxes(2, seed + 100, 60)]
    found = match(ANCHORS, targets(images), best_iou=least, last_best_wins=True)
    for i, boxes in enumerate(images):
        overlap = box_iou(boxes, ANCHORS).numpy()
        # MaxIoUAssigner: -1 undecided, 0 background, then objects counted from 1, each taking its best anchors in turn.
        assigned = np.where(overlap.max(axis=0) < 0.4, 0, -1)
        assigned = np.where(overlap.max(axis=0) >= 0.5, overlap.argmax(axis=0) + 1, assigned)
        for number, row in enumerate(overlap):
            if row.max() > 0 and row.max() >= least:
                assigned[row == row.max()] = number + 1
        assert np.array_equal(found.positive[i], assigned > 0)
        assert np.array_equal(found.negative[i], assigned == 0)
        assert np.array_equal(found.box[i][assigned > 0], assigned[assigned > 0] - 1)


def test_a_later_object_takes_its_best_anchor_from_one_that_overlaps_it_more() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 6]])  # IoU 0.9 and 0.6
    assert int(match(anchor, targets([boxes]), last_best_wins=True).box) == 1
    assert int(match(anchor, targets([boxes])).box) == 0


def test_anchors_of_each_image_its_own() -> None:
    boxes = [random_boxes(3, 1, 90), random_boxes(2, 2, 60)]
    other = ANCHORS + 5
    both = match(torch.stack([ANCHORS, other]), targets(boxes, [1, 1]))
    for i, anchors in enumerate((ANCHORS, other)):
        alone = match(anchors, targets(boxes, [1, 1]))
        for name in ("positive", "negative", "box"):
            assert torch.equal(getattr(both, name)[i], getattr(alone, name)[i])


def test_padding_is_nobodys_object() -> None:
    boxes = random_boxes(3, 1, 90)
    alone = match(ANCHORS, targets([boxes]))
    padded = match(ANCHORS, targets([boxes, random_boxes(9, 2, 90)]))
    assert torch.equal(alone.positive[0], padded.positive[0])
    assert torch.equal(alone.negative[0], padded.negative[0])


def test_without_objects_everything_is_background() -> None:
    for found in (
        match(ANCHORS, targets([torch.zeros(0, 4)])),
        match(ANCHORS, targets([torch.zeros(0, 4), ANCHORS[:2]])),
    ):
        assert bool(found.negative[0].all())
        assert not bool(found.positive[0].any())
    assert float(match(ANCHORS, targets([torch.zeros(0, 4)])).positives()) == 1.0


def test_a_crowd_region_makes_nothing_right_or_wrong() -> None:
    box, crowd = torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([[60.0, 60, 128, 128]])
    found = match(ANCHORS, targets([torch.cat([box, crowd])], [1]))
    x = (torch.minimum(ANCHORS[:, 2:], crowd[:, 2:]) - torch.maximum(ANCHORS[:, :2], crowd[:, :2])).clamp(min=0)
    covered = x[:, 0] * x[:, 1] / ((ANCHORS[:, 2] - ANCHORS[:, 0]) * (ANCHORS[:, 3] - ANCHORS[:, 1])) > 0.5
    assert bool(covered.any())
    assert not bool((found.positive[0] | found.negative[0])[covered].any())
    without = match(ANCHORS, targets([box]))
    assert torch.equal(found.negative[0] | covered, without.negative[0] | covered)
    assert torch.equal(found.positive[0], without.positive[0] & ~covered)
