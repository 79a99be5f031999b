"""COCO data sets (Lin et al. 2014; cocodataset.org, "Data format"): read and written. Nothing in a file is trusted.

A fault makes a data set unusable, except two kinds that are mended when it is read: a box that reaches beyond its image is
clipped, one without area is left out.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from frs.data.faults import Fault, Kind, summary
from frs.edge.image import load_image
from frs.errors import DataError

_Object = tuple[npt.NDArray[np.float32], bool, float, int]  # box, crowd, area, label

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxlong = 60
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


def inside(root: Path, name: str) -> Path:
    """root / name, if that is in root after links are followed. Raises DataError if not."""
    path = root / name
    parts = PurePosixPath(name)
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself, characters that no path has
        raise DataError(f"file_name {_shown(name)} cannot be followed ({error}); rename or remove it") from None
    if parts.is_absolute() or ".." in parts.parts or not within:
        raise DataError(f"file_name {_shown(name)} leads out of the images' folder {root}; keep the images inside it")
    return path


def read_coco(annotations: Path, images: Path) -> CocoDataset:
    """Read a data set; the images themselves are not opened. Raises DataError with the number of faults and the first."""
    dataset, faults = examine(annotations, images)
    grave = [fault for fault in faults if not fault.mended]
    if grave:
        counts, *first = summary(grave)
        raise DataError("\n  ".join([f"{annotations}: {counts}; `frs-pipeline check` lists them all", *first]))
    return dataset


def examine(annotations: Path, images: Path) -> tuple[CocoDataset, list[Fault]]:
    """What of a data set can be used, and all that is wrong with the rest; the images themselves are not opened.

    Raises DataError when there is no such file, or no JSON object in it.
    """
    reader = _Reader(_document(annotations), images)
    return reader.read(), reader.faults


def write_coco(dataset: CocoDataset, path: Path) -> None:
    """Write the annotations as they were understood; the same data set gives the same bytes."""
    path.write_text(coco_text(dataset), encoding="utf-8")


def coco_text(dataset: CocoDataset) -> str:
    """The annotations as a COCO file has them."""
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
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def image_files(annotations: Path, images: Path) -> dict[str, Path]:
    """The files that a data set names, by their names in it.

    Raises DataError when it cannot be read, a name leads out of the folder, or a file is missing.
    """
    entries = _document(annotations).get("images")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise DataError(f"{annotations}: `images` must be a list of objects; is it a COCO file?")
    names = [each.get("file_name") for each in entries]
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise DataError(f"{annotations}: every one of `images` needs a file_name; is it a COCO file?")
    try:
        files = {name: inside(images, name) for name in names}
    except DataError as error:
        raise DataError(f"{annotations}: {error}") from None
    missing = [path for path in files.values() if not _is_there(path)]
    if missing:
        raise DataError(
            f"{annotations}: {Kind.MISSING.counted(len(missing))} (first: {missing[0]}); put them there, or remove their "
            "entries and annotations. `frs-pipeline check` names them all"
        )
    return files


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a COCO file, which is JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); is it a COCO file?") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories; is it a COCO file?")
    return document


class _Reader:
    """One pass over a document; what is wrong is collected, what is right is kept."""

    def __init__(self, document: dict[str, Any], root: Path) -> None:
        self.document = document
        self.root = root
        self.faults: list[Fault] = []
        self.refused: dict[str, set[object]] = {"images": set(), "categories": set()}
        """Ids of entries with a fault: an annotation that names such a one is not to blame."""
        self.sized: dict[int, dict[str, Any]] = {}
        """Images whose size is known, those that are missing too: their boxes can be checked."""

    def read(self) -> CocoDataset:
        categories = tuple(sorted(self._categories(), key=lambda category: category.id))
        records = dict(self._images())
        labels = {category.id: label for label, category in enumerate(categories)}
        objects: dict[int, list[_Object]] = {key: [] for key in records}
        seen: set[int] = set()
        for where, annotation in self._entries("annotations"):
            found = self._annotation(where, annotation, labels, seen)
            if found is not None and annotation["image_id"] in objects:
                objects[annotation["image_id"]].append(found)
        images = tuple(_image(record, objects[key]) for key, record in records.items())
        return CocoDataset(self.root, images, categories)

    def _found(self, kind: Kind, where: str, message: str, **about: Any) -> None:
        self.faults.append(Fault(kind, where, message, **about))

    def _entries(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        entries = self.document.get(key)
        if not isinstance(entries, list):
            self._found(Kind.ENTRY, key, f"expected a list, got {_shown(entries)}; is it a COCO file?")
            return
        for number, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield f"{key}[{number}]", entry
            else:
                self._found(
                    Kind.ENTRY, f"{key}[{number}]", f"expected an object, got {_shown(entry)}; correct or remove it"
                )

    def _categories(self) -> Iterator[Category]:
        ids: set[int] = set()
        names: set[str] = set()
        for where, entry in self._entries("categories"):
            key, name = entry.get("id"), entry.get("name")
            if not _is_int(key) or not _is_name(name):
                self._malformed("categories", where, entry, "needs an integer id and a name", "id", "name")
            elif key in ids or name in names:
                self.refused["categories"].add(key)
                message = f"id {key} or name {_shown(name)} is there twice; give each category its own, once"
                self._found(Kind.TWICE, where, message)
            else:
                ids.add(key)
                names.add(name)
                yield Category(key, name)
        if not ids:
            self._found(
                Kind.NOTHING, "categories", "there is not one category that can be used; name what is annotated"
            )

    def _images(self) -> Iterator[tuple[int, dict[str, Any]]]:
        ids: set[int] = set()
        files: set[str] = set()
        for where, entry in self._entries("images"):
            key, name = entry.get("id"), entry.get("file_name")
            if not _is_int(key) or not _is_name(name):
                self._malformed("images", where, entry, "needs an integer id and a file_name", "id", "file_name")
                continue
            where = f"image {key} ({name})"
            if not all(_is_int(entry.get(side)) and entry[side] > 0 for side in ("width", "height")):
                self._malformed("images", where, entry, "needs positive integers width and height", "width", "height")
                continue
            self.sized.setdefault(key, entry)
            obstacle = self._obstacle(key, name, ids, files)
            if obstacle is not None:
                kind, message = obstacle
                self.refused["images"].add(key)
                self._found(kind, where, message, image=key)
                continue
            ids.add(key)
            files.add(name)
            yield key, entry
        if not ids:
            self._found(
                Kind.NOTHING, "images", "there is not one image that can be used; add some, or mend what is above"
            )

    def _obstacle(self, key: int, name: str, ids: set[int], files: set[str]) -> tuple[Kind, str] | None:
        if key in ids or name in files:
            what = f"id {key}" if key in ids else "file_name"
            return Kind.TWICE, f"its {what} is there twice; remove one of the two, or give it its own"
        try:
            path = inside(self.root, name)
        except DataError as error:
            return Kind.ELSEWHERE, str(error)
        if not _is_there(path):
            return Kind.MISSING, f"there is no {path}; put it there, or remove its entry and annotations"
        return None

    def _malformed(self, key: str, where: str, entry: dict[str, Any], needs: str, *fields: str) -> None:
        if _is_int(entry.get("id")):
            self.refused[key].add(entry["id"])
        got = " and ".join(_shown(entry.get(field)) for field in fields)
        self._found(Kind.ENTRY, where, f"{needs}, got {got}; correct or remove it")

    def _annotation(self, where: str, entry: dict[str, Any], labels: dict[int, int], seen: set[int]) -> _Object | None:
        key, image, category, box = (entry.get(field) for field in ("id", "image_id", "category_id", "bbox"))
        if _is_int(key):
            where = f"annotation {key}"
            if key in seen:
                self._found(Kind.TWICE, where, "its id is there twice; remove one of the two, or give it its own")
            seen.add(key)
        size = self.sized.get(image) if _is_int(image) else None
        if size is not None:
            where = f"{where} of image {image} ({size['file_name']})"
        elif not (_is_int(image) and image in self.refused["images"]):
            message = f"image_id {_shown(image)} is no image of this file; correct it, or remove the annotation"
            self._found(Kind.NO_IMAGE, where, message)
        label = labels.get(category) if _is_int(category) else None
        if label is None and not (_is_int(category) and category in self.refused["categories"]):
            message = f"category_id {_shown(category)} is no category of this file; correct it, or add the category"
            self._found(Kind.NO_CATEGORY, where, message)
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            message = f"bbox must be [x, y, width, height] in numbers, got {_shown(box)}; correct or remove it"
            self._found(Kind.NUMBERS, where, message, image=image if size else None)
            return None
        found = self._box(where, entry, size) if size is not None else None
        return None if found is None or label is None else (*found, label)

    def _box(
        self, where: str, entry: dict[str, Any], image: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float32], bool, float] | None:
        x, y, w, h = (float(value) for value in entry["bbox"])
        about = {"image": image["id"], "box": (x, y, w, h)}
        crowd, area = entry.get("iscrowd", 0), entry.get("area")
        if crowd not in (0, 1, None):
            self._found(Kind.ENTRY, where, f"iscrowd must be 0 or 1, got {_shown(crowd)}; correct it", **about)
            return None
        x0, x1 = (min(max(value, 0.0), image["width"]) for value in (x, x + w))
        y0, y1 = (min(max(value, 0.0), image["height"]) for value in (y, y + h))
        box = np.array([x0, y0, x1, y1], dtype=np.float32)
        named = f"bbox {entry['bbox']}"
        if w > 0 and h > 0 and (x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0):
            message = f"{named} lies outside its image ({_size(image)}); correct or remove it"
            self._found(Kind.OUTSIDE, where, message, **about)
            return None
        if w <= 0 or h <= 0 or bool((box[2:] <= box[:2]).any()):
            self._found(Kind.EMPTY, where, f"{named} has no area; it is left out", **about)
            return None
        if max(abs(x - x0), abs(y - y0), abs(x + w - x1), abs(y + h - y1)) > 1.0:
            message = f"{named} reaches beyond its image ({_size(image)}); it is clipped"
            self._found(Kind.CLIPPED, where, message, **about)
        return box, bool(crowd), float(area) if _is_number(area) and area > 0 else w * h


def _image(record: dict[str, Any], objects: list[_Object]) -> CocoImage:
    boxes, crowd, area, labels = zip(*objects, strict=True) if objects else ((), (), (), ())
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


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_name(value: object) -> TypeGuard[str]:
    """Half of a surrogate pair, which JSON can hold, can be written nowhere else."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _size(entry: dict[str, Any]) -> str:
    return f"{_shown(entry.get('width'))} x {_shown(entry.get('height'))}"


def _shown(value: object) -> str:
    text = _brief.repr(value)  # the built-in repr would walk all of it, however deep
    return text if len(text) <= 60 else text[:57] + "..."
