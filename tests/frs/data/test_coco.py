from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from frs.data import Kind, check_coco, image_files, read_coco, write_coco
from frs.errors import DataError

GOOD: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "sub/b.png", "width": 20, "height": 20},
        {"id": 9, "file_name": "c.png", "width": 10, "height": 10},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 100.5, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [5.5, 5, 20, 20], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 20], "area": 400},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for image in GOOD["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / "images" / image["file_name"])
    return tmp_path


def write(folder: Path, document: Any) -> Path:
    (folder / "a.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return folder / "a.json"


def changed(*path: Any, value: Any) -> dict[str, Any]:
    """GOOD with another value at a place; None: without the key."""
    document = copy.deepcopy(GOOD)
    node: Any = document
    for key in path[:-1]:
        node = node[key]
    if value is None and isinstance(node, dict):
        node.pop(path[-1], None)
    else:
        node[path[-1]] = value
    return document


def test_what_is_read(folder: Path) -> None:
    data = read_coco(write(folder, GOOD), folder / "images")
    assert [(c.id, c.name) for c in data.categories] == [(3, "dog"), (7, "cat")]
    first = data.images[0]
    assert (first.id, first.file_name, first.width, first.height) == (4, "a.png", 40, 30)
    assert first.boxes.tolist() == [[1, 2, 11, 14], [5.5, 5, 25.5, 25]]
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.area.tolist() == [100.5, 400.0]
    assert [len(image.boxes) for image in data.images] == [2, 1, 0]
    assert data.path(data.images[1]) == folder / "images" / "sub" / "b.png"
    assert check_coco(folder / "a.json", folder / "images") == []


def test_what_is_written_is_what_was_read_and_pycocotools_reads_it(folder: Path) -> None:
    data = read_coco(write(folder, GOOD), folder / "images")
    write_coco(data, folder / "b.json")
    again = read_coco(folder / "b.json", folder / "images")
    for one, other in zip(data.images, again.images, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.area, other.area)
        assert (one.id, one.labels.tolist(), one.crowd.tolist()) == (
            other.id,
            other.labels.tolist(),
            other.crowd.tolist(),
        )
    truth = COCO(str(folder / "b.json"))
    assert truth.loadAnns(truth.getAnnIds(imgIds=[4]))[1]["iscrowd"] == 1
    write_coco(again, folder / "c.json")
    assert (folder / "b.json").read_bytes() == (folder / "c.json").read_bytes()


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", "is it a COCO file"),
        (changed("images", value=None), "images: expected a list, got None"),
        (changed("images", 0, value=5), r"images\[0\]: expected an object, got 5"),
        (changed("images", 0, "id", value="4"), "needs an integer id and a file_name, got '4' and 'a.png'"),
        (
            changed("images", 0, "width", value=-1),
            r"image 4 \(a\.png\): needs positive integers width and height, got -1 and 30",
        ),
        (changed("images", 1, "id", value=4), "its id 4 is there twice"),
        (changed("images", 1, "file_name", value="a.png"), "its file_name is there twice"),
        (changed("images", 0, "file_name", value="gone.png"), r"image 4 \(gone\.png\): there is no"),
        (changed("images", 0, "file_name", value="../a.json"), "leads out of the images' folder"),
        (changed("images", 0, "file_name", value="/etc/passwd"), "leads out of the images' folder"),
        (changed("images", 0, "file_name", value="a\x00.png"), r"image 4"),
        (changed("categories", value=[]), "there is not one category"),
        (changed("categories", 1, "id", value=7), "id 7 or name 'dog' is there twice"),
        (changed("categories", 0, "name", value=""), "needs an integer id and a name"),
        (changed("annotations", 0, "image_id", value=77), "annotation 1: image_id 77 is no image"),
        (
            changed("annotations", 0, "category_id", value=1),
            r"annotation 1 of image 4 \(a\.png\): category_id 1 is no category",
        ),
        (changed("annotations", 1, "id", value=1), "annotation 1: its id is there twice"),
        (
            changed("annotations", 0, "bbox", value=[1, 2, 3]),
            r"annotation 1 of image 4.*: bbox must be \[x, y, width, height\]",
        ),
        (changed("annotations", 0, "bbox", value=[1, 2, float("nan"), 4]), r"annotation 1 of image 4.*: bbox must be"),
        (changed("annotations", 0, "bbox", value=[1, 2, "3", 4]), r"annotation 1 of image 4.*: bbox must be"),
        (changed("annotations", 0, "bbox", value=[1, 2, 10**400, 4]), r"annotation 1 of image 4.*: bbox must be"),
        (changed("annotations", 0, "bbox", value=[0, 0, 1e200, 1e200]), r"annotation 1 of image 4.*: bbox must be"),
        (
            changed("annotations", 0, "iscrowd", value="0"),
            r"annotation 1 of image 4.*: iscrowd must be 0 or 1, got '0'",
        ),
        (changed("images", 0, "file_name", value="a" * 5000), "there is no"),
        (changed("images", 0, "file_name", value="\ud800.png"), "needs an integer id and a file_name"),
        (changed("annotations", 0, "bbox", value=[41, 2, 3, 4]), r"lies outside its image \(40 x 30\)"),
    ],
)
def test_what_is_refused_and_how(folder: Path, document: Any, sentence: str) -> None:
    path = write(folder, document)
    with pytest.raises(DataError, match=sentence):
        read_coco(path, folder / "images")
    assert any(not fault.mended for fault in check_coco(path, folder / "images"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        read_coco(tmp_path / "gone.json", tmp_path)


def test_all_faults_are_found_in_one_pass(folder: Path) -> None:
    document = changed("annotations", 0, "category_id", value=1)
    document["annotations"][2]["image_id"] = 77
    document["images"][2]["file_name"] = "gone.png"
    document["annotations"].append({"id": 4, "image_id": 9, "category_id": 7, "bbox": [0, 0, 5, 5]})
    faults = check_coco(write(folder, document), folder / "images")
    # Not one of annotation 4: what is wrong with it is that its image is not there.
    assert [(fault.kind, fault.where) for fault in faults] == [
        (Kind.MISSING, "image 9 (gone.png)"),
        (Kind.NO_CATEGORY, "annotation 1 of image 4 (a.png)"),
        (Kind.NO_IMAGE, "annotation 3"),
        (Kind.NOTHING, "annotations"),
    ]
    with pytest.raises(DataError) as caught:
        read_coco(folder / "a.json", folder / "images")
    assert str(caught.value).splitlines()[0] == (
        f"{folder}/a.json: 1 image is missing, 1 annotation is of no category, 1 annotation is of no image; "
        "`frs-pipeline check` lists them all"
    )


def test_what_is_mended_is_a_warning(folder: Path) -> None:
    document = changed("annotations", 0, "bbox", value=[-5, 20, 10, 12])
    document["annotations"][2]["bbox"] = [3, 3, 0, 4]
    document["annotations"][1] |= {"bbox": [30, 3, 1e-9, 4], "area": 10**400}  # no width is left of it in float32
    path = write(folder, document)
    faults = check_coco(path, folder / "images")
    assert [(fault.kind, fault.where) for fault in faults] == [
        (Kind.CLIPPED, "annotation 1 of image 4 (a.png)"),
        (Kind.EMPTY, "annotation 2 of image 4 (a.png)"),
        (Kind.EMPTY, "annotation 3 of image 2 (sub/b.png)"),
    ]
    assert all(fault.mended for fault in faults)
    assert (faults[0].image, faults[0].box) == (4, (-5, 20, 10, 12))
    data = read_coco(path, folder / "images")
    np.testing.assert_allclose(data.images[0].boxes, [[0, 20, 5, 30]])
    assert len(data.images[1].boxes) == 0


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    (folder / "secret.png").write_bytes((folder / "images" / "a.png").read_bytes())
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "a.png").symlink_to(folder / "secret.png")
    with pytest.raises(DataError, match="leads out of the images' folder"):
        read_coco(write(folder, GOOD), folder / "images")


def test_a_link_to_itself_is_refused(folder: Path) -> None:
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "a.png").symlink_to("a.png")
    path = write(folder, GOOD)
    with pytest.raises(DataError, match=r"image 4 \(a\.png\)"):
        read_coco(path, folder / "images")


def test_an_image_of_another_size_is_not_loaded(folder: Path) -> None:
    data = read_coco(write(folder, GOOD), folder / "images")
    assert data.load(data.images[0]).shape == (30, 40, 3)
    Image.new("RGB", (30, 40)).save(folder / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: it is 30 x 40 pixels; the annotations say 40 x 30"):
        data.load(data.images[0])


def test_images_are_opened_by_the_check_alone(folder: Path) -> None:
    path = write(folder, GOOD)
    Image.new("RGB", (41, 30)).save(folder / "images" / "a.png")
    (folder / "images" / "c.png").write_text("no image")
    read_coco(path, folder / "images")
    faults = check_coco(path, folder / "images")
    assert [fault.where for fault in faults] == ["image 4 (a.png)", "image 9 (c.png)"]
    assert "it is 41 x 30 pixels; the annotations say 40 x 30" in faults[0].message


def test_image_files(folder: Path) -> None:
    images = folder / "images"
    found = image_files(write(folder, GOOD), images)
    assert found == {name: images / name for name in ("a.png", "sub/b.png", "c.png")}
    document = changed("images", 0, "file_name", value="a" * 5000)
    document["images"][1]["file_name"] = "sub"
    with pytest.raises(DataError, match=r"a\.json: 2 images are missing \(first: .*/images/aaa"):
        image_files(write(folder, document), images)
    for wrong in ({}, {"images": [3]}, {"images": [{"file_name": 3}]}, {"images": [{"file_name": "a\0"}]}):
        with pytest.raises(DataError, match="is it a COCO file"):
            image_files(write(folder, wrong), images)
    with pytest.raises(DataError, match="leads out of the images' folder"):
        image_files(write(folder, {"images": [{"file_name": "../a.json"}]}), images)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
paths = st.sampled_from(
    [
        ("images",), ("images", 0), ("images", 0, "id"), ("images", 0, "file_name"), ("images", 1, "width"),
        ("categories",), ("categories", 0), ("categories", 1, "name"), ("annotations",), ("annotations", 2),
        ("annotations", 0, "bbox"), ("annotations", 0, "bbox", 1), ("images", 0, "height"), ("annotations", 1, "image_id"),
        ("annotations", 1, "area"), ("annotations", 1, "iscrowd"), ("annotations", 2, "category_id"),
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=paths, value=json_values)
def test_nothing_in_a_file_breaks_the_checker(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    document = write(folder, changed(*path, value=value))
    faults = check_coco(document, folder / "images")
    if any(not fault.mended for fault in faults):
        return
    for image in read_coco(document, folder / "images").images:
        assert np.isfinite(image.boxes).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()
