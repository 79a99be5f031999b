from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from frs.edge.predictor import Detections, ModelInfo
from frs.evaluation.parity import Parity, by_image, compare, match, parity, summarise, worst

Box = tuple[float, float, float, float, float, int]  # xyxy, score, label


def detections(*boxes: Box) -> Detections:
    table = np.array(boxes, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def measured(a: Detections, b: Detections, full_at: int = 100) -> Parity:
    return summarise([compare(a, b, score_threshold=0.05, detections=full_at)])


A = (0.0, 0.0, 10.0, 10.0, 0.9, 0)


def test_differences_of_pairs() -> None:
    b = (0.5, 0.0, 10.0, 10.25, 0.88, 0)
    found = measured(detections(A, (20, 20, 30, 30, 0.5, 1)), detections(b, (20, 20, 30, 30, 0.5, 1)))
    assert (found.images, found.boxes, found.unmatched) == (1, 2, 0.0)
    assert found.score_max == pytest.approx(0.02)
    assert found.box_max == pytest.approx(0.5)
    assert found.iou_p5 == pytest.approx(95 / (100 + 9.5 * 10.25 - 95))


@pytest.mark.parametrize("other", [(0, 0, 10, 10, 0.9, 1), (6, 0, 16, 10, 0.9, 0)], ids=["class", "place"])
def test_another_class_or_place_is_no_partner(other: Box) -> None:
    found = measured(detections(A), detections(other))
    assert (found.boxes, found.unmatched) == (2, 1.0)
    assert (found.score_max, found.iou_p25) == (None, None)


def test_the_best_overlap_is_paired_first() -> None:
    near, exact = (2.0, 0.0, 12.0, 10.0, 0.9, 0), (0.0, 0.0, 10.0, 10.0, 0.4, 0)
    left, right = match(detections(A), detections(near, exact))
    assert (left.tolist(), right.tolist()) == ([0], [1])
    left, right = match(detections(A, near), detections(near, exact))
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_box_without_a_partner_counts_by_what_its_score_is_above_the_threshold() -> None:
    """A pair at 0.9 weighs 0.85, a box at 0.06 weighs 0.01 and one at 0.9 another 0.85."""
    faint, clear = (20, 20, 30, 30, 0.06, 0), (20, 20, 30, 30, 0.9, 0)
    for one, other in ((detections(A, faint), detections(A)), (detections(A), detections(A, faint))):
        assert measured(one, other).unmatched == pytest.approx(0.01 / 0.86, rel=1e-4)
        assert measured(one, other).boxes == 2
    assert measured(detections(A, clear), detections(A)).unmatched == pytest.approx(0.5)


def test_where_the_other_side_is_full_its_last_score_is_the_cut() -> None:
    """With room for two, (0.500) and (0.495) could be a tie at the last place: the weights are 0.005 and 0; with room for
    three neither has an excuse: 0.45 and 0.445 beside the pair's 0.85."""
    here, there = (20, 20, 30, 30, 0.500, 0), (40, 40, 50, 50, 0.495, 0)
    assert measured(detections(A, here), detections(A, there), full_at=2).unmatched == pytest.approx(
        0.005 / 0.855, rel=1e-3
    )
    assert measured(detections(A, here), detections(A, there), full_at=3).unmatched == pytest.approx(0.895 / 1.745)


def test_the_lower_quartile_is_not_moved_by_one_pair_of_ten() -> None:
    """Where boxes of one object score alike a rounding decides which survives: its neighbour then is the partner."""
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0, 0.9, 0) for i in range(10)]
    moved = [(2.0, 0.0, 12.0, 10.0, 0.9, 0), *boxes[1:]]
    found = measured(detections(*boxes), detections(*moved))
    assert found.iou_p25 == 1.0
    assert found.iou_p5 == pytest.approx(80 / 120)


def test_nothing_compared_is_said() -> None:
    assert measured(detections(), detections()) == Parity(1, 0, 0.0, None, None, None, None, None, None)
    assert summarise([]).images == 0


def test_images_are_ranked_by_how_much_disagrees() -> None:
    """0: nothing; 1: a score by 0.1; 2: a box of 0.9 missing, 0.85 above the threshold; 3: IoU 2/3 of a pair of weight 0.85."""
    same = detections(A)
    others = [same, detections((*A[:4], 0.8, 0)), detections(), detections((2.0, 0.0, 12.0, 10.0, 0.9, 0))]
    images = {i: compare(same, other, score_threshold=0.05, detections=100) for i, other in enumerate(others)}
    assert [images[i].disagreement for i in range(4)] == pytest.approx([0, 0.1, 0.85, 0.85 / 3], abs=1e-6)
    assert worst(images, 2) == [2, 3]
    assert worst(images, 9) == [2, 3, 1]


def test_result_rows_become_detections_of_every_image() -> None:
    rows = [
        {"image_id": 7, "category_id": 44, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.25},
        {"image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.75},
    ]
    found = by_image(rows, [7, 8], category_ids=(3, 17, 44))  # type: ignore[arg-type]
    assert found[7].boxes.tolist() == [[0, 0, 5, 5], [1, 2, 11, 22]]
    assert (found[7].scores.tolist(), found[7].labels.tolist()) == ([0.75, 0.25], [0, 2])
    assert len(found[8]) == 0


class Canned:
    """Answers with what it was given."""

    info = ModelInfo(8, 8, ("a", "b"), (1, 2))

    def __init__(self, *answers: Detections) -> None:
        self.answers = answers

    def predict(self, images: npt.NDArray[np.uint8]) -> Sequence[Detections]:
        return self.answers[: len(images)]


def test_every_image_of_a_batch_is_compared() -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    one, other = Canned(detections(A), detections(A)), Canned(detections(A), detections())
    found = parity(one, other, [images])  # type: ignore[arg-type]
    assert (found.images, found.boxes, found.unmatched) == (2, 2, pytest.approx(0.5))
