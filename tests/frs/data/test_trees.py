from __future__ import annotations

import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from frs.data import CocoDataset, read_coco
from frs.data.trees import ARCHIVE, PHOTOGRAPHS, build_trees
from frs.errors import PackageError
from frs.packages import fetch
from stages.common import cache_folder

TILE, STRIDE = 160, 80
SIZES = dict(zip(PHOTOGRAPHS, ((2299, 2472), (1249, 1035)), strict=True))  # width, height


@pytest.fixture(scope="module")
def archive() -> Path:
    return fetch(ARCHIVE, cache_folder())


@pytest.fixture(scope="module")
def built(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    build_trees(archive, folder, tile=TILE, stride=STRIDE, validation_fraction=0.3, min_visible=0.4)
    return folder


def split(built: Path, name: str) -> CocoDataset:
    return read_coco(built / f"{name}.json", built / "images")


def place(file_name: str) -> tuple[str, int, int]:
    photograph, x, y = Path(file_name).stem.rsplit("_", 2)
    return photograph, int(x), int(y)


def test_the_splits_share_no_pixel(built: Path) -> None:
    lowest = dict.fromkeys(PHOTOGRAPHS, 0)
    for image in split(built, "train").images:
        name, _, y = place(image.file_name)
        lowest[name] = max(lowest[name], y + TILE)
    seen = set()
    for image in split(built, "val").images:
        name, x, y = place(image.file_name)
        assert y >= lowest[name]
        assert y >= round(SIZES[name][1] * 0.7)
        assert x + TILE <= SIZES[name][0]
        assert y + TILE <= SIZES[name][1]
        assert (x % TILE, (name, x, y) in seen) == (0, False)
        seen.add((name, x, y))


def test_the_boxes_are_those_of_the_annotations(archive: Path, built: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        annotated = {
            name: [
                [float(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")]  # type: ignore[union-attr, arg-type]
                for box in ElementTree.fromstring(wheel.read(f"deepforest/data/{name}.xml")).iter("bndbox")
            ]
            for name in PHOTOGRAPHS
        }
    assert [len(annotated[name]) for name in PHOTOGRAPHS] == [574, 279]
    total = 0
    for image in (*split(built, "train").images, *split(built, "val").images):
        name, x, y = place(image.file_name)
        expected = []
        for x0, y0, x1, y1 in annotated[name]:
            cut = [max(x0 - x, 0), max(y0 - y, 0), min(x1 - x, TILE), min(y1 - y, TILE)]
            width, height = cut[2] - cut[0], cut[3] - cut[1]
            if width > 0 and height > 0 and 10 * width * height >= 4 * (x1 - x0) * (y1 - y0):
                expected.append(cut)
        np.testing.assert_allclose(image.boxes, np.array(expected).reshape(-1, 4))
        total += len(expected)
    assert total > 2000


def test_a_tile_is_the_photographs_pixels(archive: Path, built: Path) -> None:
    with zipfile.ZipFile(archive) as wheel, wheel.open(f"deepforest/data/{PHOTOGRAPHS[1]}.png") as file:
        photograph = np.asarray(Image.open(file).convert("RGB"))
    image = next(i for i in split(built, "val").images if place(i.file_name)[0] == PHOTOGRAPHS[1])
    _, x, y = place(image.file_name)
    found = np.asarray(Image.open(built / "images" / image.file_name))
    np.testing.assert_array_equal(found, photograph[y : y + TILE, x : x + TILE])


def test_tiles_without_a_tree_are_kept(built: Path) -> None:
    empty = [sum(len(image.boxes) == 0 for image in split(built, name).images) for name in ("train", "val")]
    assert min(empty) > 0


def test_twice_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_trees(archive, tmp_path / name, tile=128, stride=128, validation_fraction=0.3, min_visible=0.4, limit=5)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 5 + 5 + 2
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_a_limit_beyond_all_tiles_keeps_each_once(archive: Path, tmp_path: Path, built: Path) -> None:
    build_trees(archive, tmp_path, tile=160, stride=160, validation_fraction=0.3, min_visible=0.4, limit=10_000)
    names = [image.file_name for image in split(tmp_path, "val").images]
    with_trees = {image.file_name for image in split(tmp_path, "val").images if len(image.boxes)}
    assert len(names) == len(set(names)) == len(with_trees) > 10


def test_another_file_is_not_taken_for_the_archive(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(PackageError, match=r"other\.whl: its sha256 is .*, expected 8c2798d8"):
        build_trees(tmp_path / "other.whl", tmp_path, tile=160, stride=80, validation_fraction=0.3, min_visible=0.4)
