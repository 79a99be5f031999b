from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frs.errors import DataError
from frs.evaluation import Row
from frs.evaluation.images import Tally, best_threshold, match_images


def truth(folder: Path, objects: list[dict[str, Any]], images: int = 2) -> Path:
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(1, images + 1)],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3]}
            | each
            for number, each in enumerate(objects, start=1)
        ],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(document))
    return path


def found(box: list[float], score: float, category: int = 3, image: int = 1) -> Row:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


# Two objects of class a and one of class b in image 1; image 2 is empty.
OBJECTS: list[dict[str, Any]] = [
    {"bbox": [0, 0, 10, 10]},
    {"bbox": [50, 50, 20, 20]},
    {"bbox": [0, 80, 10, 10], "category_id": 7},
]
ROWS = [
    found([0, 0, 10, 8], 0.9),  # IoU 80/100 with the first
    found([0, 0, 10, 10], 0.8),  # the first is taken: nothing left there
    found([50, 50, 20, 9], 0.7),  # IoU 180/400 with the second: below 0.5
    found([0, 80, 10, 10], 0.6),  # right place, wrong class
    found([50, 50, 20, 20], 0.4),
    found([1, 1, 5, 5], 0.3, image=2),
]


def test_what_is_found_missed_and_invented(tmp_path: Path) -> None:
    matches = match_images(truth(tmp_path, OBJECTS), ROWS)
    assert set(matches) == {1, 2}
    assert matches[1].scores[matches[1].hit].tolist() == [0.9, 0.4]
    assert sorted(matches[1].found_at.tolist()) == [-1.0, 0.4, 0.9]
    assert matches[1].objects[matches[1].found_at == 0.9].tolist() == [[0, 0, 10, 10]]
    assert matches[1].boxes[matches[1].scores == 0.7].tolist() == [[50, 50, 70, 59]]
    assert (matches[1].tally(0.0), matches[2].tally(0.0)) == (Tally(2, 1, 3), Tally(0, 0, 1))
    assert matches[1].tally(0.65) == Tally(1, 2, 2)
    assert matches[1].tally(0.4) == Tally(2, 1, 3), "a threshold keeps its own score"
    assert matches[1].tally(0.65).errors == 4


def test_dropping_detections_is_scoring_what_is_left(tmp_path: Path) -> None:
    annotations = truth(tmp_path, OBJECTS)
    whole = match_images(annotations, ROWS)
    for threshold in (0.35, 0.5, 0.65, 0.85):
        left = match_images(annotations, [row for row in ROWS if row["score"] >= threshold])
        assert {image: each.tally(threshold) for image, each in whole.items()} == {
            image: each.tally(0.0) for image, each in left.items()
        }


def test_crowds_are_neither_found_nor_missed(tmp_path: Path) -> None:
    crowd = {"bbox": [0, 0, 60, 60], "iscrowd": 1}
    matches = match_images(truth(tmp_path, [crowd, {"bbox": [80, 80, 10, 10]}]), [found([5, 5, 20, 20], 0.9)])
    assert matches[1].tally(0.0) == Tally(0, 1, 0)


def test_the_best_threshold_has_the_highest_f1(tmp_path: Path) -> None:
    # F1 after 1..6 detections, 3 objects: 2/4, 2/5, 2/6, 2/7, 4/8, 4/9. The highest score of the two best.
    assert best_threshold(match_images(truth(tmp_path, OBJECTS), ROWS)) == 0.9
    # Without the second and third: 2/4, 2/5, 4/6, 4/7.
    assert best_threshold(match_images(truth(tmp_path, OBJECTS), [ROWS[0], *ROWS[3:]])) == 0.4


def test_detections_of_one_score_are_kept_or_dropped_together(tmp_path: Path) -> None:
    # F1 is 2/3 from 0.9, and 4/6 from 0.5; it would be 4/4 if the right one of the three at 0.5 could be kept alone.
    rows = [
        found([0, 0, 10, 10], 0.5),
        found([60, 0, 9, 9], 0.5),
        found([70, 0, 9, 9], 0.5),
        found([50, 50, 20, 20], 0.9),
    ]
    assert best_threshold(match_images(truth(tmp_path, OBJECTS[:2]), rows)) == 0.9


def test_without_any_detection(tmp_path: Path) -> None:
    matches = match_images(truth(tmp_path, OBJECTS), [])
    assert matches[1].tally(0.5) == Tally(0, 3, 0)
    assert best_threshold(matches) == 0.0
    assert matches[2].boxes.shape == (0, 4)


def test_an_image_that_the_annotations_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names image 5"):
        match_images(truth(tmp_path, OBJECTS), [found([0, 0, 1, 1], 0.5, image=5)])


def test_boxes_are_corners_of_float64(tmp_path: Path) -> None:
    matches = match_images(truth(tmp_path, OBJECTS), ROWS)
    assert matches[1].boxes.dtype == matches[1].objects.dtype == np.float64
