from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from frs.edge.predictor import Detections, ModelInfo
from frs.export.parity import Parity, match, parity

Box = tuple[float, float, float, float, float, int]  # xyxy, score, label


def detections(*boxes: Box) -> Detections:
    table = np.array(boxes, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


class Canned:
    """Answers with what it was given."""

    info = ModelInfo(8, 8, ("a", "b"), (1, 2))

    def __init__(self, *answers: Detections) -> None:
        self.answers = answers

    def predict(self, images: npt.NDArray[np.uint8]) -> Sequence[Detections]:
        return self.answers[: len(images)]


def compare(a: Detections, b: Detections, full_at: int = 100) -> Parity:
    images = np.zeros((1, 3, 8, 8), np.uint8)
    return parity(Canned(a), Canned(b), [images], score_threshold=0.05, detections=full_at)  # type: ignore[arg-type]


A = (0.0, 0.0, 10.0, 10.0, 0.9, 0)


def test_differences_of_pairs() -> None:
    b = (0.5, 0.0, 10.0, 10.25, 0.88, 0)
    measured = compare(detections(A, (20, 20, 30, 30, 0.5, 1)), detections(b, (20, 20, 30, 30, 0.5, 1)))
    assert (measured.images, measured.boxes, measured.unmatched) == (1, 2, 0.0)
    assert measured.score_max == pytest.approx(0.02)
    assert measured.box_max == pytest.approx(0.5)


@pytest.mark.parametrize("other", [(0, 0, 10, 10, 0.9, 1), (6, 0, 16, 10, 0.9, 0)], ids=["class", "place"])
def test_another_class_or_place_is_no_partner(other: Box) -> None:
    measured = compare(detections(A), detections(other))
    assert (measured.boxes, measured.unmatched) == (2, 1.0)
    assert measured.score_max is None


def test_the_best_overlap_is_paired_first() -> None:
    near, exact = (2.0, 0.0, 12.0, 10.0, 0.9, 0), (0.0, 0.0, 10.0, 10.0, 0.4, 0)
    left, right = match(detections(A), detections(near, exact))
    assert (left.tolist(), right.tolist()) == ([0], [1])
    left, right = match(detections(A, near), detections(near, exact))
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_tie_at_the_score_threshold_is_no_fault() -> None:
    faint, clear = (20, 20, 30, 30, 0.055, 0), (20, 20, 30, 30, 0.07, 0)
    assert compare(detections(A, faint), detections(A)).unmatched == 0
    assert compare(detections(A), detections(A, faint)).unmatched == 0
    assert compare(detections(A, clear), detections(A)).unmatched == 0.5


def test_a_tie_at_the_last_place_is_no_fault() -> None:
    here, there = (20, 20, 30, 30, 0.500, 0), (40, 40, 50, 50, 0.495, 0)
    assert compare(detections(A, here), detections(A, there), full_at=2).unmatched == 0
    assert compare(detections(A, here), detections(A, there), full_at=3).unmatched == pytest.approx(2 / 3)


def test_nothing_compared_is_said() -> None:
    measured = compare(detections(), detections())
    assert measured == Parity(1, 0, 0.0, None, None, None, None)
