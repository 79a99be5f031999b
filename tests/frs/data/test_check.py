from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frs.data import CocoDataset, CocoImage, Fault, Kind, check_images
from frs.data.check import check_splits, content_hashes, shared_images
from frs.data.coco import Category
from frs.data.faults import summary

NONE: dict[str, Any] = {
    "boxes": np.zeros((0, 4), np.float32),
    "labels": np.zeros(0, np.int64),
    "crowd": np.zeros(0, np.bool_),
}


def dataset(
    folder: Path, sizes: list[tuple[int, int]], categories: tuple[Category, ...] = (Category(1, "a"),)
) -> CocoDataset:
    """Pictures of one colour each, and their records."""
    folder.mkdir(exist_ok=True)
    images = []
    for number, (width, height) in enumerate(sizes, start=1):
        Image.new("RGB", (width, height), (number % 256, width % 256, 9)).save(folder / f"{number}.png")
        images.append(CocoImage(number, f"{number}.png", width, height, area=np.zeros(0), **NONE))
    return CocoDataset(folder, tuple(images), categories)


def test_every_image_is_looked_at_and_progress_is_told(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(8, 6)] * 2500)
    (tmp_path / "7.png").write_text("no image")
    (tmp_path / "1100.png").unlink()
    Image.new("RGB", (6, 8)).save(tmp_path / "2500.png")
    told: list[tuple[int, int]] = []
    faults = check_images(data, lambda done, total: told.append((done, total)))
    assert [(fault.kind, fault.image) for fault in faults] == [
        (Kind.UNREADABLE, 7), (Kind.UNREADABLE, 1100), (Kind.SIZE, 2500),
    ]  # fmt: skip
    assert told == [(done, 2500) for done in range(1, 2501)]


def test_two_large_images_are_never_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path, [(8, 8)] * 12)
    monkeypatch.setattr("frs.data.check._LARGE", 0)
    monkeypatch.setattr("frs.data.check.os.sched_getaffinity", lambda _: set(range(4)))
    inside, most = 0, 0
    first = threading.Event()

    def load(*_: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        first.wait(0.02)  # time enough for another to come in
        inside -= 1

    monkeypatch.setattr(CocoDataset, "load", load)
    assert check_images(data) == []
    assert most == 1
    monkeypatch.setattr("frs.data.check._LARGE", 10**9)
    check_images(data)
    assert most > 1


def test_the_filters_of_warnings_are_as_before(tmp_path: Path) -> None:
    data = dataset(tmp_path, [(8, 6)] * 200)
    before = list(warnings.filters)
    check_images(data)
    assert list(warnings.filters) == before


def test_splits_are_compared_by_content_and_category(tmp_path: Path) -> None:
    train = dataset(tmp_path / "train", [(8, 6), (8, 6), (9, 9)])
    val = dataset(tmp_path / "val", [(5, 5)] * 4, (Category(1, "b"),))
    (tmp_path / "val/4.png").write_bytes((tmp_path / "train/2.png").read_bytes())
    (tmp_path / "val/2.png").unlink()
    faults = check_splits(train, val)
    assert [(fault.kind, fault.where) for fault in faults] == [
        (Kind.CATEGORIES, "category 1 (a)"), (Kind.CATEGORIES, "category 1 (b)"), (Kind.SHARED, "2.png in train"),
    ]  # fmt: skip
    assert shared_images(content_hashes(train), content_hashes(val)) == [("2.png", "4.png")]


def test_faults_are_counted_in_words() -> None:
    faults = [Fault(Kind.MISSING, f"image {i}", "there is none") for i in range(7)] + [
        Fault(Kind.EMPTY, "annotation 1", "no")
    ]
    assert summary(faults, shown=2) == [
        "7 images are missing, 1 box has no area and is left out",
        "image 0: there is none",
        "image 1: there is none",
        "and 6 more",
    ]
    assert Kind.OUTSIDE.counted(1_234) == "1,234 boxes lie outside their image"
    assert [kind for kind in Kind if Fault(kind, "", "").mended] == [Kind.CLIPPED, Kind.EMPTY]
