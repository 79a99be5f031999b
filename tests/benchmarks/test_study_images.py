"""The bootstrap over images, with AP by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from frs.evaluation import Row
from frs.evaluation.bootstrap import Matches, difference

BOX = [10.0, 10.0, 20.0, 20.0]


def found(annotations: Path, *images: int) -> Matches:
    rows: list[Row] = [{"image_id": image, "category_id": 1, "bbox": BOX, "score": 0.9} for image in images]
    return Matches.of(annotations, rows)


def test_images_count_as_often_as_they_are_drawn_and_pairs_alike(tmp_path: Path) -> None:
    annotations = tmp_path / "annotations.json"
    one = {"category_id": 1, "bbox": BOX, "area": 400, "iscrowd": 0}
    document = {
        "images": [{"id": i, "width": 64, "height": 64, "file_name": f"{i}.png"} for i in (1, 2)],
        "annotations": [{"id": i, "image_id": i, **one} for i in (1, 2)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    annotations.write_text(json.dumps(document))
    half, whole = found(annotations, 1), found(annotations, 1, 2)
    # One object of two is found: precision is 1 up to a recall of 0.5, at 51 of the 101 recalls.
    assert difference([(half, whole)], np.array([1, 1])) == pytest.approx(100 - 100 * 51 / 101)
    assert difference([(half, whole), (half, half)], np.array([1, 1])) == pytest.approx((100 - 100 * 51 / 101) / 2)
    assert difference([(half, whole)], np.array([2, 0])) == 0
    assert difference([(half, whole)], np.array([0, 2])) == pytest.approx(100)
