from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from frs.detectors.cluster_nms import cluster_nms


def greedy(boxes: Tensor, labels: Tensor, threshold: float) -> set[int]:
    """By torchvision, for boxes in descending order of score."""
    scores = torch.linspace(1.0, 0.1, len(boxes))
    return set(batched_nms(boxes, scores, labels, threshold).tolist())


def survivors(boxes: Tensor, labels: Tensor, threshold: float, rounds: int) -> set[int]:
    keep = cluster_nms(boxes[None], labels[None], iou_threshold=threshold, rounds=rounds)[0]
    assert set(keep.tolist()) <= {0.0, 1.0}
    return set(keep.nonzero()[:, 0].tolist())


def scene(seed: int, count: int, objects: int, classes: int, spread: float) -> tuple[Tensor, Tensor]:
    """Boxes that crowd around a few objects, as a detector's candidates do."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0, 256, (objects, 2))
    size = random.uniform(16, 96, (objects, 2))
    which = random.integers(0, objects, count)
    at = centre[which] + random.normal(0, spread, (count, 2)) * size[which]
    half = size[which] * np.exp(random.normal(0, spread, (count, 2))) / 2
    boxes = np.concatenate([at - half, at + half], axis=1).clip(0, 256)
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(random.integers(0, classes, count))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 300),
    objects=st.integers(1, 30),
    classes=st.integers(1, 5),
    spread=st.floats(0.02, 0.4),
    threshold=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_sixteen_rounds_are_greedy_nms_on_dense_scenes(
    seed: int, count: int, objects: int, classes: int, spread: float, threshold: float
) -> None:
    boxes, labels = scene(seed, count, objects, classes, spread)
    assert survivors(boxes, labels, threshold, 16) == greedy(boxes, labels, threshold)


@pytest.fixture
def staircase() -> Tensor:
    """60 squares, each 30% to the right of the one before it: every one is suppressed by its neighbour alone."""
    left = torch.arange(60) * 30.0
    boxes = torch.stack([left, torch.zeros(60), left + 100.0, torch.full((60,), 100.0)], dim=1)
    overlaps = box_iou(boxes, boxes)
    assert overlaps[0, 1] == pytest.approx(70 / 130)  # 0.54
    assert overlaps[0, 2] == pytest.approx(40 / 160)
    return boxes


def test_a_chain_longer_than_the_rounds_is_not_decided(staircase: Tensor) -> None:
    labels = torch.zeros(60, dtype=torch.long)
    expected = set(range(0, 60, 2))
    assert greedy(staircase, labels, 0.5) == expected
    assert survivors(staircase, labels, 0.5, 16) != expected
    assert survivors(staircase, labels, 0.5, 59) == expected
    # As far as the rounds reach it is right: boxes at the end of at most 16 overlaps.
    assert {i for i in survivors(staircase, labels, 0.5, 16) if i <= 16} == {i for i in expected if i <= 16}


def test_classes_do_not_suppress_each_other(staircase: Tensor) -> None:
    assert survivors(staircase, torch.arange(60) % 2, 0.5, 4) == set(range(60))


def test_an_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # IoU exactly 0.5
    labels = torch.zeros(2, dtype=torch.long)
    assert survivors(boxes, labels, 0.5, 1) == greedy(boxes, labels, 0.5) == {0, 1}


def test_boxes_without_area_neither_suppress_nor_vanish() -> None:
    boxes = torch.zeros(3, 4)
    assert survivors(boxes, torch.zeros(3, dtype=torch.long), 0.5, 2) == {0, 1, 2}


def test_images_of_a_batch_are_apart() -> None:
    first, second = scene(1, 80, 5, 2, 0.2), scene(2, 80, 5, 2, 0.2)
    boxes, labels = torch.stack([first[0], second[0]]), torch.stack([first[1], second[1]])
    keep = cluster_nms(boxes, labels, iou_threshold=0.5, rounds=16)
    for row, (b, label) in zip(keep, (first, second), strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == greedy(b, label, 0.5)
