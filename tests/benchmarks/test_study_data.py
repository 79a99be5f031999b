from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.study_data import Split, carve


def made(folder: Path, images: int) -> Split:
    """As many different files, with one to three boxes each of two classes."""
    (folder / "images").mkdir()
    document: dict[str, Any] = {
        "info": {"year": 2020},
        "licenses": [{"id": 7}],
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "cup"}, {"id": 9, "name": "jug"}],
    }
    for i in range(1, images + 1):
        (folder / "images" / f"{i}.jpg").write_text(str(i))
        document["images"].append({"id": i, "file_name": f"{i}.jpg", "width": 50, "height": 40, "licence": 7})
        for _ in range(1 + i % 3):
            box = {"bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0, "category_id": 3 + 6 * (i % 2)}
            document["annotations"].append({"id": len(document["annotations"]) + 1, "image_id": i, **box})
    (folder / "all.json").write_text(json.dumps(document))
    return Split(folder / "all.json", folder / "images")


def entries(split: Split, key: str) -> list[Any]:
    found: list[Any] = json.loads(split.annotations.read_text())[key]
    return found


def test_a_carved_split_is_disjoint_and_complete(tmp_path: Path) -> None:
    whole = made(tmp_path, images=50)
    train, val = carve(whole, tmp_path / "carved")
    assert train.images == val.images == whole.images
    assert (len(entries(train, "images")), len(entries(val, "images"))) == (40, 10)
    for key in ("images", "annotations"):
        both = entries(train, key) + entries(val, key)
        assert sorted(both, key=lambda entry: entry["id"]) == entries(whole, key)
    for split in (train, val):
        assert {each["image_id"] for each in entries(split, "annotations")} == {
            each["id"] for each in entries(split, "images")
        }


def test_a_carved_split_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    for split in carve(made(tmp_path, images=10), tmp_path / "carved"):
        document = json.loads(split.annotations.read_text())
        assert document["info"] == {"year": 2020}
        assert document["licenses"] == [{"id": 7}]
        assert [each["id"] for each in document["categories"]] == [3, 9]
        assert [category.name for category in split.read().categories] == ["cup", "jug"]


def test_the_same_set_is_carved_to_the_same_bytes(tmp_path: Path) -> None:
    whole = made(tmp_path, images=20)
    first, again = carve(whole, tmp_path / "first"), carve(whole, tmp_path / "again")
    assert [split.annotations.read_bytes() for split in first] == [split.annotations.read_bytes() for split in again]
