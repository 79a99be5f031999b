"""COCO data sets (Lin et al. 2014; cocodataset.org, "Data format"): read, checked, written. Nothing in a file is trusted.

A fault of kind "error" makes a data set unusable. A "warning" is mended when it is read: a box that reaches beyond its
image is clipped, one without area is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from frs.edge.image import load_image
from frs.errors import DataError

_SHOWN = 5
_LARGEST = 1e9
"""No coordinate, side or area is as large; what is has no place in a float32, or in JSON once it is multiplied."""


@dataclass(frozen=True)
class Category:
    """A class as the annotations name it; its label is its place in `CocoDataset.categories`."""

    id: int
    name: str


@dataclass(frozen=True)
class CocoImage:
    """An image and its objects.

    boxes: (n, 4) float32, xyxy in pixels; labels: (n,) int64, contiguous; crowd: (n,) bool; area: (n,) float64, of the
    segmentation where there is one: what COCO's small, medium and large go by.
    """

    id: int
    file_name: str
    width: int
    height: int
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    area: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CocoDataset:
    """A data set whose every field has been checked; categories by ascending id."""

    root: Path
    images: tuple[CocoImage, ...]
    categories: tuple[Category, ...]

    def path(self, image: CocoImage) -> Path:
        """Where the image lies. Raises DataError when its name, or a link, leads out of the images' folder."""
        return inside(self.root, image.file_name)

    def load(self, image: CocoImage) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB. Raises DataError when it cannot be read, or has another size than the annotations say."""
        return load_image(self.path(image), (image.height, image.width))

    def first(self, count: int) -> CocoDataset:
        """The same with the first `count` images."""
        return CocoDataset(self.root, self.images[:count], self.categories)


@dataclass(frozen=True)
class Fault:
    """Something wrong: where (file, key or id), and what."""

    kind: Literal["error", "warning"]
    where: str
    message: str


def inside(root: Path, name: str) -> Path:
    """root / name, if that is in root after links are followed. Raises DataError if not."""
    path = root / name
    parts = PurePosixPath(name)
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself, characters that no path has
        raise DataError(f"file_name {_shown(name)} cannot be followed ({error}); rename or remove it") from None
    if parts.is_absolute() or ".." in parts.parts or not within:
        raise DataError(f"file_name {name!r} leads out of the images' folder {root}; keep the images inside it")
    return path


def read_coco(annotations: Path, images: Path) -> CocoDataset:
    """Read a data set; the images themselves are not opened. Raises DataError with the number of faults and the first."""
    document = _document(annotations)
    reader = _Reader(document, annotations, images)
    dataset = reader.read()
    errors = [fault for fault in reader.faults if fault.kind == "error"]
    if errors:
        lines = [f"{fault.where}: {fault.message}" for fault in errors[:_SHOWN]]
        more = [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        raise DataError(
            "\n  ".join([f"{annotations}: {len(errors)} faults; `frs-pipeline check` lists them all", *lines, *more])
        )
    return dataset


def check_coco(annotations: Path, images: Path, *, decode: bool = True) -> list[Fault]:
    """All faults of a data set in one pass; with `decode` every image is opened and its size compared."""
    try:
        reader = _Reader(_document(annotations), annotations, images)
    except DataError as error:
        return [Fault("error", str(annotations), str(error))]
    dataset = reader.read()
    if decode:
        for image in dataset.images:
            reader.faults.extend(_decoded(dataset, image))
    return reader.faults


def write_coco(dataset: CocoDataset, path: Path) -> None:
    """Write the annotations as they were understood; the same data set gives the same bytes."""
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        for box, label, crowd, area in zip(image.boxes, image.labels, image.crowd, image.area, strict=True):
            x0, y0, x1, y1 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": dataset.categories[label].id,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    document = {
        "info": {},
        "images": [
            {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in dataset.images
        ],
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
        "annotations": annotations,
    }
    path.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def image_files(annotations: Path, images: Path) -> dict[str, Path]:
    """The files that a data set names, by their names in it. Raises DataError when it cannot be read, or a name leads out of
    the folder."""
    entries = _document(annotations).get("images")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise DataError(f"{annotations}: `images` must be a list of objects; is it a COCO file?")
    names = [each.get("file_name") for each in entries]
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise DataError(f"{annotations}: every one of `images` needs a file_name; is it a COCO file?")
    return {name: inside(images, name) for name in names}


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories; is it a COCO file?")
    return document


class _Reader:
    """One pass over a document; what is wrong is collected, what is right is kept."""

    def __init__(self, document: dict[str, Any], annotations: Path, root: Path) -> None:
        self.document = document
        self.annotations = annotations
        self.root = root
        self.faults: list[Fault] = []

    def read(self) -> CocoDataset:
        categories = tuple(sorted(self._categories(), key=lambda category: category.id))
        records = dict(self._images())
        labels = {category.id: label for label, category in enumerate(categories)}
        objects: dict[int, list[tuple[Any, ...]]] = {key: [] for key in records}
        seen: set[int] = set()
        for where, annotation in self._entries("annotations"):
            found = self._annotation(where, annotation, records, labels, seen)
            if found is not None:
                objects[annotation["image_id"]].append(found)
        images = tuple(_image(record, objects[key]) for key, record in records.items())
        if not images:
            self._error("images", "there is not one image that can be used")
        return CocoDataset(self.root, images, categories)

    def _error(self, where: str, message: str) -> None:
        self.faults.append(Fault("error", where, message))

    def _warn(self, where: str, message: str) -> None:
        self.faults.append(Fault("warning", where, message))

    def _entries(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        entries = self.document.get(key)
        if not isinstance(entries, list):
            self._error(key, f"expected a list, got {_shown(entries)}")
            return
        for number, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield f"{key}[{number}]", entry
            else:
                self._error(f"{key}[{number}]", f"expected an object, got {_shown(entry)}")

    def _categories(self) -> Iterator[Category]:
        ids: set[int] = set()
        names: set[str] = set()
        for where, entry in self._entries("categories"):
            key, name = entry.get("id"), entry.get("name")
            if not _is_int(key) or not isinstance(name, str) or not name:
                self._error(where, f"needs an integer id and a name, got {_shown(key)} and {_shown(name)}")
            elif key in ids or name in names:
                self._error(where, f"id {key} or name {name!r} is there twice")
            else:
                ids.add(key)
                names.add(name)
                yield Category(key, name)
        if not ids:
            self._error("categories", "there is not one category")

    def _images(self) -> Iterator[tuple[int, dict[str, Any]]]:
        ids: set[int] = set()
        files: set[str] = set()
        for where, entry in self._entries("images"):
            key, name = entry.get("id"), entry.get("file_name")
            if not _is_int(key) or not isinstance(name, str) or not name:
                self._error(where, f"needs an integer id and a file_name, got {_shown(key)} and {_shown(name)}")
                continue
            where = f"image {key} ({name})"
            if not all(_is_int(entry.get(side)) and entry[side] > 0 for side in ("width", "height")):
                self._error(where, f"width and height must be positive integers, got {_size(entry)}")
                continue
            if key in ids or name in files:
                self._error(where, "its id or its file_name is there twice")
                continue
            try:
                path = inside(self.root, name)
                if not path.is_file():
                    self._error(where, f"there is no {path}")
            except (DataError, OSError) as error:  # is_file: a name that is too long
                self._error(where, str(error))
                continue
            ids.add(key)
            files.add(name)
            yield key, entry

    def _annotation(
        self,
        where: str,
        entry: dict[str, Any],
        images: dict[int, dict[str, Any]],
        labels: dict[int, int],
        seen: set[int],
    ) -> tuple[npt.NDArray[np.float32], int, bool, float] | None:
        key, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
        if _is_int(key):
            where = f"annotation {key}"
            if key in seen:
                self._error(where, "its id is there twice")
            seen.add(key)
        if not _is_int(image) or image not in images:
            self._error(where, f"image_id {_shown(image)} is no image of this file that can be used")
            return None
        if not _is_int(category) or category not in labels:
            self._error(where, f"category_id {_shown(category)} is no category of this file")
            return None
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            self._error(where, f"bbox must be [x, y, width, height] in numbers, got {_shown(box)}")
            return None
        return self._box(where, entry, images[image], labels[category])

    def _box(
        self, where: str, entry: dict[str, Any], image: dict[str, Any], label: int
    ) -> tuple[npt.NDArray[np.float32], int, bool, float] | None:
        x, y, w, h = (float(value) for value in entry["bbox"])
        x0, x1 = (min(max(value, 0.0), image["width"]) for value in (x, x + w))
        y0, y1 = (min(max(value, 0.0), image["height"]) for value in (y, y + h))
        box = np.array([x0, y0, x1, y1], dtype=np.float32)
        beyond = x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0
        if w > 0 and h > 0 and beyond:
            self._error(where, f"bbox {entry['bbox']} lies outside its image ({_size(image)})")
            return None
        if w <= 0 or h <= 0 or bool((box[2:] <= box[:2]).any()):
            self._warn(where, f"bbox {entry['bbox']} has no area; it is left out")
            return None
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1, None):
            self._error(where, f"iscrowd must be 0 or 1, got {_shown(crowd)}")
            return None
        if max(abs(x - x0), abs(y - y0), abs(x + w - x1), abs(y + h - y1)) > 1.0:
            self._warn(where, f"bbox {entry['bbox']} reaches beyond its image ({_size(image)}); it is clipped")
        area = entry.get("area")
        area = float(area) if _is_number(area) and area > 0 else w * h
        return box, label, bool(crowd), area


def _image(record: dict[str, Any], objects: list[tuple[Any, ...]]) -> CocoImage:
    boxes, labels, crowd, area = zip(*objects, strict=True) if objects else ((), (), (), ())
    return CocoImage(
        id=record["id"],
        file_name=record["file_name"],
        width=record["width"],
        height=record["height"],
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        crowd=np.array(crowd, dtype=np.bool_),
        area=np.array(area, dtype=np.float64),
    )


def _decoded(dataset: CocoDataset, image: CocoImage) -> Iterator[Fault]:
    where = f"image {image.id} ({image.file_name})"
    try:
        dataset.load(image)
    except DataError as error:
        yield Fault("error", where, str(error))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _size(entry: dict[str, Any]) -> str:
    return f"{_shown(entry.get('width'))} x {_shown(entry.get('height'))}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
