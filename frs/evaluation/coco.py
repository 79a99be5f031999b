"""COCO average precision (pycocotools, the reference implementation) of any predictor; no torch."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frs.data.coco import CocoImage
from frs.data.resize import Placed
from frs.edge.predictor import Predictor
from frs.errors import DataError


class Row(TypedDict):
    """A detection as COCO's result files have it; bbox: [x, y, width, height] in pixels of the image."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


@dataclass(frozen=True)
class Accuracy:
    """COCO AP in percent; None where the data set has nothing of that size or class. per_class: AP by class name."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    per_class: dict[str, float | None]
    images: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Batches = Iterable[tuple[npt.NDArray[np.uint8], Sequence[Placed], Sequence[CocoImage]]]


def predict_dataset(predictor: Predictor, batches: Batches) -> list[Row]:
    """Every image through the predictor; boxes in pixels of the image, categories by their ids.

    Raises DataError when a box or score is not finite.
    """
    ids = predictor.info.category_ids
    rows: list[Row] = []
    for pixels, mappings, images in batches:
        for found, mapping, image in zip(
            predictor.predict(pixels), mappings, images, strict=False
        ):  # the rest is filling
            boxes = mapping.to_original(found.boxes).astype(np.float64)
            sides = boxes[:, 2:] - boxes[:, :2]
            for i in range(len(found)):
                row: Row = {
                    "image_id": image.id,
                    "category_id": ids[found.labels[i]],
                    "bbox": [*boxes[i, :2].tolist(), *sides[i].tolist()],
                    "score": float(found.scores[i]),
                }
                _check_finite(row)
                rows.append(row)
    return rows


def evaluate(annotations: Path, rows: Sequence[Row]) -> Accuracy:
    """AP over all images of the annotations, found something or not.

    Raises DataError when a row names an image or a category that the annotations do not have, or is not finite.
    """
    scorer = score(annotations, rows)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.accumulate()
    precision = scorer.eval["precision"]  # (10 IoUs, 101 recalls, classes, 4 areas, 3 limits)
    classes = scorer.cocoGt.loadCats(scorer.params.catIds)
    return Accuracy(
        AP=_mean(precision[:, :, :, 0, -1]),
        AP50=_mean(precision[0, :, :, 0, -1]),
        AP75=_mean(precision[5, :, :, 0, -1]),
        APs=_mean(precision[:, :, :, 1, -1]),
        APm=_mean(precision[:, :, :, 2, -1]),
        APl=_mean(precision[:, :, :, 3, -1]),
        per_class={category["name"]: _mean(precision[:, :, k, 0, -1]) for k, category in enumerate(classes)},
        images=len(scorer.params.imgIds),
    )


def score(annotations: Path, rows: Sequence[Row]) -> COCOeval:
    """pycocotools' matching of rows and annotations, evaluated and not yet accumulated; it prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        _check(rows, set(truth.getImgIds()), set(truth.getCatIds()))
        # loadRes cannot take an empty list.
        found = truth.loadRes([{**row} for row in rows]) if rows else COCO()
        if not rows:
            found.dataset = {"images": [], "categories": [], "annotations": []}
            found.createIndex()
        scorer = COCOeval(truth, found, "bbox")
        scorer.evaluate()
    return scorer


def _check(rows: Sequence[Row], images: set[int], categories: set[int]) -> None:
    for row in rows:
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise DataError(
                f"a detection names image {row['image_id']} and category {row['category_id']}, which the annotations do "
                "not have; the model and the data set do not belong together"
            )
        _check_finite(row)


def _check_finite(row: Row) -> None:
    """To pycocotools a box of NaN overlaps every object by enough: a broken model would score close to 100."""
    if not all(map(math.isfinite, (*row["bbox"], row["score"]))):
        raise DataError(
            f"a detection in image {row['image_id']} is not finite (bbox {row['bbox']}, score {row['score']}); the model "
            "computes NaN or overflows its precision: look at its weights, or export it in fp32"
        )


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    """The mean over what there is, in percent; pycocotools marks what there is not with -1."""
    there = precision[precision > -1]
    return 100.0 * float(there.mean()) if there.size else None
