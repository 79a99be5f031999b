"""Whatever JSON is given, the checker answers with faults, and what it calls fine can be read, written and scored."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from frs.data import CocoDataset, check_coco, image_files, read_coco, write_coco
from frs.errors import DataError
from frs.evaluation import Row, evaluate

GOOD: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 100.5, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5.5, 5, 20, 20], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 20], "area": 400},
    ],
}
quick = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [0, 1, 2, 3, 4, 7, 20, 40, 2**31, 2**63, 10**30, 1e-9, 1e38, "a.png", "../a.json", "/", "a.png/", "\ud800"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
corners, sides = st.floats(-5, 19) | st.integers(-5, 22), st.floats(0, 60) | st.integers(-1, 60)
boxes = st.tuples(corners, corners, sides, sides)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = [path for path in places(GOOD) if path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for image in GOOD["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    return tmp_path


def answers(images: Path, text: str) -> None:
    path = images / "a.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    faults = check_coco(path, images)
    for fault in faults:
        assert str(fault)
        assert fault.kind.counted(2)
    try:
        files = image_files(path, images)
        data = read_coco(path, images)
    except DataError:
        assert any(not fault.mended for fault in faults)
        return
    assert {data.path(image) for image in data.images} == set(files.values())
    if all(fault.mended for fault in faults):
        scored(data, images / "b.json")


def scored(data: CocoDataset, path: Path) -> None:
    """Written and read again it is the same, and its own objects as detections score 100."""
    write_coco(data, path)
    again = read_coco(path, data.root)
    rows: list[Row] = []
    for ours, theirs in zip(data.images, again.images, strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
        assert ours.labels.tolist() == theirs.labels.tolist()
        for box, label, crowd in zip(ours.boxes.astype(float), ours.labels, ours.crowd, strict=True):
            if not crowd:
                bbox = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
                row: Row = {"image_id": ours.id, "category_id": data.categories[label].id, "bbox": bbox, "score": 0.9}
                rows.append(row)
    found = evaluate(path, rows)
    assert found.AP == pytest.approx(100)


def test_what_is_good(images: Path) -> None:
    answers(images, json.dumps(GOOD))
    assert check_coco(images / "a.json", images) == []


@quick
@given(text=st.text(max_size=40) | st.text(alphabet='{}[]":,0-1e.imagsnotc', max_size=60))
def test_any_text(images: Path, text: str) -> None:
    answers(images, text)


@quick
@given(document=values)
def test_any_json(images: Path, document: Any) -> None:
    answers(images, json.dumps(document))


@quick
@given(lists=st.fixed_dictionaries({key: st.lists(st.sampled_from(GOOD[key]) | values, max_size=4) for key in GOOD}))
def test_lists_of_anything(images: Path, lists: Any) -> None:
    answers(images, json.dumps(lists))


@quick
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=3))
def test_a_good_document_with_other_values_in_it(images: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = copy.deepcopy(GOOD)
    for place, value in changes:
        node: Any = document
        try:
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken the place away
    answers(images, json.dumps(document))


@quick
@given(
    found=st.lists(
        st.tuples(boxes, st.sampled_from([2, 4]), st.sampled_from([3, 7]), st.sampled_from([0, 1])), max_size=6
    )
)
def test_any_boxes(images: Path, found: list[tuple[Any, int, int, int]]) -> None:
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for number, (box, image, category, crowd) in enumerate(found)
    ]
    answers(images, json.dumps({**GOOD, "annotations": annotations}))


def test_depth_without_end(images: Path) -> None:
    for depth in (100, 900, 990, 100_000):
        answers(images, '{"images": ' + "[" * depth + "]" * depth + "}")
        answers(images, json.dumps(GOOD).replace('"a.png"', "[" * depth + "]" * depth))
