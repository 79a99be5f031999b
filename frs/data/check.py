"""Everything that is wrong with a data set, its images among it, before a training meets it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from frs.data.coco import Category, CocoDataset, CocoImage, examine
from frs.data.faults import Fault, Kind
from frs.errors import DataError, SizeError

Watch = Callable[[int, int], None]
"""Is told how many of how many images are done."""

_LARGE = 25_000_000  # pixels; two such images are not decoded at once, so that memory does not grow with the cores
_AT_ONCE = 1024
_CHUNK = 1 << 20
_Result = TypeVar("_Result")


def check_coco(annotations: Path, images: Path, *, decode: bool = True) -> list[Fault]:
    """All faults of one split in one pass; with `decode` every image is opened, decoded and its size compared."""
    try:
        dataset, faults = examine(annotations, images)
    except DataError as error:
        return [Fault(Kind.FILE, str(annotations), str(error).removeprefix(f"{annotations}: "))]
    return [*faults, *check_objects(dataset), *(check_images(dataset) if decode else ())]


def check_objects(dataset: CocoDataset) -> list[Fault]:
    """Whether there is anything to find. Without images or categories there is not, which is a fault already."""
    if not dataset.images or not dataset.categories or any((~image.crowd).any() for image in dataset.images):
        return []
    message = "there is not one object that is no crowd, so nothing to find; annotate some, or take another file"
    return [Fault(Kind.NOTHING, "annotations", message)]


def check_images(dataset: CocoDataset, watch: Watch | None = None) -> list[Fault]:
    """Decode every image, by several threads, and name those that a training could not use."""
    large = threading.Lock()

    def look(image: CocoImage) -> Fault | None:
        try:
            with large if image.width * image.height > _LARGE else nullcontext():
                dataset.load(image)
        except DataError as error:
            kind = Kind.SIZE if isinstance(error, SizeError) else Kind.UNREADABLE
            return Fault(kind, f"image {image.id} ({image.file_name})", str(error), image=image.id)
        return None

    return [fault for fault in _each(look, dataset, watch) if fault is not None]


def content_hashes(dataset: CocoDataset) -> dict[str, str]:
    """file_name -> sha256 of the file's bytes; a file that cannot be read is left out."""

    def digest(image: CocoImage) -> str | None:
        found = hashlib.sha256()
        try:
            with dataset.path(image).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    found.update(chunk)
        except OSError:
            return None
        return found.hexdigest()

    names = [image.file_name for image in dataset.images]
    return {name: found for name, found in zip(names, _each(digest, dataset, None), strict=True) if found is not None}


def check_splits(train: CocoDataset, val: CocoDataset) -> list[Fault]:
    """What is wrong between the two: other categories, or an image, by its content, in both."""
    odd = odd_categories(train.categories, val.categories) if train.categories and val.categories else []
    message = "both annotation files must have the same ids and names; correct one of them"
    other = [Fault(Kind.CATEGORIES, f"category {each.id} ({each.name})", message) for each in odd]
    shared = [
        Fault(Kind.SHARED, f"{theirs} in train", f"it is {ours} in val; remove it from one of the two")
        for theirs, ours in shared_images(content_hashes(train), content_hashes(val))
    ]
    return [*other, *shared]


def odd_categories(train: tuple[Category, ...], val: tuple[Category, ...]) -> list[Category]:
    """Categories of one split that the other does not have with the same id and name."""
    return sorted(set(train) ^ set(val), key=lambda category: (category.id, category.name))


def shared_images(train: Mapping[str, str], val: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name in train, name in val) of each image in both; the mappings: file_name -> content hash."""
    trained = {content: name for name, content in train.items()}
    return [(trained[content], name) for name, content in val.items() if content in trained]


def _each(look: Callable[[CocoImage], _Result], dataset: CocoDataset, watch: Watch | None) -> Iterator[_Result]:
    """In the order of the images, some at once."""
    total = len(dataset.images)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, total, _AT_ONCE):
            for done, result in enumerate(pool.map(look, dataset.images[start : start + _AT_ONCE]), start + 1):
                if watch is not None:
                    watch(done, total)
                yield result
