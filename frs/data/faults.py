"""What can be wrong with a data set, by kind, so that it can be counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """A kind of fault, in words for one and for several."""

    FILE = "annotation file cannot be used", "annotation files cannot be used"
    ENTRY = "entry is malformed", "entries are malformed"
    TWICE = "id or name is there twice", "ids or names are there twice"
    NOTHING = "list has nothing that can be used", "lists have nothing that can be used"
    MISSING = "image is missing", "images are missing"
    ELSEWHERE = "image lies outside its folder", "images lie outside their folder"
    UNREADABLE = "image cannot be read", "images cannot be read"
    SIZE = "image has another size than its annotations say", "images have another size than their annotations say"
    NO_IMAGE = "annotation is of no image", "annotations are of no image"
    NO_CATEGORY = "annotation is of no category", "annotations are of no category"
    NUMBERS = "box is not four plain numbers", "boxes are not four plain numbers"
    OUTSIDE = "box lies outside its image", "boxes lie outside their image"
    CLIPPED = "box reaches beyond its image and is clipped", "boxes reach beyond their image and are clipped"
    EMPTY = "box has no area and is left out", "boxes have no area and are left out"
    CATEGORIES = "category is in one split alone", "categories are in one split alone"
    SHARED = "image is in both splits", "images are in both splits"

    def counted(self, count: int) -> str:
        """ "1 image is missing", "3 images are missing"."""
        return f"{count:,} {self.value[count != 1]}"


@dataclass(frozen=True)
class Fault:
    """Something wrong: of what kind, where (file, key or id), what, and what to do about it.

    image: the id of the image that it is about; box: [x, y, width, height] as the file has it, where there is one.
    """

    kind: Kind
    where: str
    message: str
    image: int | None = None
    box: tuple[float, float, float, float] | None = None

    @property
    def mended(self) -> bool:
        """Whether the data set can be used all the same: a warning."""
        return self.kind in (Kind.CLIPPED, Kind.EMPTY)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def summary(faults: Iterable[Fault], shown: int = 5) -> list[str]:
    """A line with the count of each kind, then the first of all of them."""
    faults = list(faults)
    kinds = {
        kind: sum(fault.kind is kind for fault in faults) for kind in dict.fromkeys(fault.kind for fault in faults)
    }
    more = [f"and {len(faults) - shown:,} more"] if len(faults) > shown else []
    return [", ".join(kind.counted(n) for kind, n in kinds.items()), *map(str, faults[:shown]), *more]
