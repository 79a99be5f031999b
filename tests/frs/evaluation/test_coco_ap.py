from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frs.data import evaluation_batches, read_coco
from frs.edge.predictor import Detections, ModelInfo
from frs.errors import DataError
from frs.evaluation import Row, evaluate, predict_dataset
from tests.frs.evaluation.scenes import scene
from tests.frs.training.conftest import draw_rectangles


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_pycocotools_says(tmp_path: Path, seed: int) -> None:
    annotations, rows, _ = scene(tmp_path, seed)
    truth = COCO(str(annotations))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    scorer = COCOeval(truth, truth.loadRes(str(tmp_path / "rows.json")), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    found = evaluate(annotations, rows)
    ours = [found.AP, found.AP50, found.AP75, found.APs, found.APm, found.APl]
    assert ours == [pytest.approx(100 * value) if value > -1 else None for value in scorer.stats[:6]]
    assert found.images == 12
    assert found.AP == pytest.approx(np.mean([ap for ap in found.per_class.values() if ap is not None]))


def small(tmp_path: Path) -> Path:
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2)],
        "categories": [{"id": 5, "name": "a"}, {"id": 6, "name": "never"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 5, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
            for i in (1, 2)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    return tmp_path / "a.json"


def row(image: int, score: float = 0.9, **changes: Any) -> Row:
    made: Row = {"image_id": image, "category_id": 5, "bbox": [10.0, 10.0, 40.0, 40.0], "score": score}
    return {**made, **changes}  # type: ignore[typeddict-item]


def test_all_found_is_a_hundred_and_what_is_not_there_is_none(tmp_path: Path) -> None:
    found = evaluate(small(tmp_path), [row(1), row(2)])
    assert [found.AP, found.AP50, found.APm] == pytest.approx([100, 100, 100])
    assert (found.APs, found.APl) == (None, None)
    assert found.per_class == {"a": pytest.approx(100), "never": None}


def test_half_found_by_hand(tmp_path: Path) -> None:
    # Recall 0.5 at precision 1: 51 of the 101 recall points, 0.00 to 0.50, have precision 1.
    assert evaluate(small(tmp_path), [row(1)]).AP == pytest.approx(100 * 51 / 101)


def test_a_better_scored_mistake_by_hand(tmp_path: Path) -> None:
    # Mistake, hit, hit: precision at the two recalls 1/2 and 2/3; made monotone 2/3 everywhere.
    rows = [row(1, 0.99, bbox=[60.0, 60.0, 30.0, 30.0]), row(1), row(2)]
    assert evaluate(small(tmp_path), rows).AP == pytest.approx(100 * 2 / 3)


def test_an_inexact_box_counts_at_the_lower_thresholds_alone(tmp_path: Path) -> None:
    # 40 x 40 against 40 x 32 inside it: IoU 0.8, found at 0.50 to 0.80, seven thresholds of ten.
    rows = [row(i, bbox=[10.0, 10.0, 40.0, 32.0]) for i in (1, 2)]
    assert evaluate(small(tmp_path), rows).AP == pytest.approx(70.0)


def test_nothing_found_is_zero_and_no_error(tmp_path: Path) -> None:
    found = evaluate(small(tmp_path), [])
    assert (found.AP, found.AP50, found.APm) == (0.0, 0.0, 0.0)
    assert found.per_class == {"a": 0.0, "never": None}


def test_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(small(tmp_path), [row(1)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("bad", [row(7), row(1, category_id=1)])
def test_rows_of_another_data_set_are_refused(tmp_path: Path, bad: Row) -> None:
    with pytest.raises(DataError, match="do not belong together"):
        evaluate(small(tmp_path), [bad])


@pytest.mark.parametrize(
    "bad", [row(2, score=float("nan")), row(2, bbox=[float("nan")] * 4), row(2, score=float("inf"))]
)
def test_rows_that_are_not_finite_are_refused(tmp_path: Path, bad: Row) -> None:
    # pycocotools would give boxes of NaN an AP of 100.
    with pytest.raises(DataError, match="a detection in image 2 is not finite"):
        evaluate(small(tmp_path), [row(1), bad])


class Seer:
    """Finds in every image the box that it is told, in pixels of the input."""

    info = ModelInfo(128, 128, ("rectangle",), (7,))

    def __init__(self, left: float = 16.0) -> None:
        self.left = left

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        box = np.array([[self.left, 32, 64, 96]], dtype=np.float32)
        return [Detections(box, np.array([0.75], np.float32), np.array([0], np.int32)) for _ in images]


def test_predictions_are_in_pixels_of_the_image_and_named_by_category(tmp_path: Path) -> None:
    draw_rectangles(tmp_path, count=3)
    data = read_coco(tmp_path / "annotations.json", tmp_path / "images")
    rows = predict_dataset(Seer(), evaluation_batches(data, 128, 128, 2))
    # 64 px images in a 128 px input: half of everything.
    assert rows == [{"image_id": i, "category_id": 7, "bbox": [8, 16, 24, 32], "score": 0.75} for i in (1, 2, 3)]
    evaluate(tmp_path / "annotations.json", rows)


def test_a_predictor_that_answers_nan_is_refused(tmp_path: Path) -> None:
    draw_rectangles(tmp_path, count=3)
    data = read_coco(tmp_path / "annotations.json", tmp_path / "images")
    with pytest.raises(DataError, match="a detection in image 1 is not finite"):
        predict_dataset(Seer(float("nan")), evaluation_batches(data, 128, 128, 2))


def test_scoring_needs_no_torch() -> None:
    code = "import sys, frs.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
