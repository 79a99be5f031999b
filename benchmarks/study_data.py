"""The data sets of the study: what is trained on, what chooses among checkpoints and settings, and what is reported.

    datasets(Path(os.environ["FRS_DATA"]), folder)

No image of `test` is seen before the figures that are reported. `bccd` is published in three parts. `cards` in two: its
publisher's validation set is `test`, and `val` is a fifth of its training set, by `frs.data.split`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from frs.data.coco import CocoDataset, read_coco
from frs.data.split import split_dataset
from frs.edge.files import write_atomically

HERE = Path(__file__).parent
VAL_FRACTION = 0.2


class Split(NamedTuple):
    """A file in COCO's format, and the folder that its file names are relative to."""

    annotations: Path
    images: Path

    def read(self) -> CocoDataset:
        return read_coco(*self)


@dataclass(frozen=True)
class StudyData:
    """configuration: of the trainings, whose `data` is filled in. height, width: of the input of every detector, in pixels;
    that of most of the photographs' shape."""

    name: str
    configuration: Path
    height: int
    width: int
    train: Split
    val: Split
    test: Split

    def split(self, name: str) -> Split:
        """By its name: train, val or test."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def datasets(root: Path, folder: Path) -> dict[str, StudyData]:
    """By name. root: a folder with one for each set; folder: where the annotations of carved splits are written.

    Raises DataError for what is not there or cannot be used.
    """
    bccd = {name: published(root / "bccd", name) for name in ("train", "val", "test")}
    cards = published(root / "cards", "train")
    train, val = carve(cards, folder / "cards")
    return {
        "bccd": StudyData("bccd", HERE / "study_bccd.yaml", 192, 256, **bccd),
        "cards": StudyData("cards", HERE / "study_cards.yaml", 256, 192, train, val, published(root / "cards", "val")),
    }


def published(root: Path, name: str) -> Split:
    return Split(root / "annotations" / f"{name}.json", root / name)


def carve(whole: Split, folder: Path) -> tuple[Split, Split]:
    """(train, val) out of one split: its entries, told apart by their image, and all that is beside them in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = split_dataset(whole.read(), VAL_FRACTION)
    document = json.loads(whole.annotations.read_text(encoding="utf-8"))
    written = []
    for name, part in zip(("train", "val"), parts, strict=True):
        ids = {image.id for image in part.images}
        carved = document | {
            "images": [image for image in document["images"] if image["id"] in ids],
            "annotations": [each for each in document["annotations"] if each["image_id"] in ids],
        }
        path = folder / f"{name}.json"
        write_atomically(path, json.dumps(carved).encode())
        written.append(Split(path, whole.images))
    return written[0], written[1]
