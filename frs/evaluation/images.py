"""What a detector finds, misses and invents in each image: for pictures and for where two detectors differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frs.evaluation.coco import Row, score

_IOU_50 = 0
"""Place of 0.5 among COCO's IoU thresholds."""


@dataclass(frozen=True)
class ImageMatches:
    """One image's detections against its objects, class by class, as pycocotools matches them at IoU 0.5.

    boxes: (n, 4) float64 xyxy in pixels of the image; scores: (n,); hit: (n,) bool, found an object. objects: (m, 4) xyxy;
    found_at: (m,) score of the detection that found each, -1 where none did. What matches a crowd region, and the region
    itself, is left out. A detection of lower score never takes an object from one of higher score, so that all of this
    holds at every threshold.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    hit: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.float64]
    found_at: npt.NDArray[np.float64]

    def tally(self, threshold: float) -> Tally:
        """What is there when detections below `threshold` are dropped."""
        kept = self.scores >= threshold
        found = int((self.hit & kept).sum())
        return Tally(found, len(self.objects) - found, int((~self.hit & kept).sum()))


@dataclass(frozen=True)
class Tally:
    """Objects found, objects missed, detections where nothing is."""

    found: int
    missed: int
    false: int

    @property
    def errors(self) -> int:
        return self.missed + self.false


def match_images(annotations: Path, rows: Sequence[Row]) -> dict[int, ImageMatches]:
    """Image id -> its matches, for every image of the annotations. Raises DataError as `evaluate` does."""
    scorer = score(annotations, rows)
    every_area = scorer.params.areaRng[scorer.params.areaRngLbl.index("all")]
    by_image: dict[int, list[ImageMatches]] = {image: [] for image in scorer.params.imgIds}
    for entry in scorer.evalImgs:
        if entry is not None and entry["aRng"] == every_area:
            by_image[entry["image_id"]].append(_of_class(scorer, entry))
    return {image: _joined(parts) for image, parts in by_image.items()}


def best_threshold(matches: Mapping[int, ImageMatches]) -> float:
    """The score at which F1 over all images is highest; 0 where nothing was found."""
    scores = np.concatenate([each.scores for each in matches.values()])
    hits = np.concatenate([each.hit for each in matches.values()])
    if not hits.any():
        return 0.0
    objects = sum(len(each.objects) for each in matches.values())
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(order) + 1) + objects)
    last = np.append(np.diff(scores[order]) != 0, True)  # detections of one score are kept or dropped together
    return float(scores[order][np.argmax(np.where(last, f1, -1.0))])


def _of_class(scorer: COCOeval, entry: dict[str, Any]) -> ImageMatches:
    counted = ~entry["dtIgnore"][_IOU_50].astype(bool)
    objects = ~np.asarray(entry["gtIgnore"]).astype(bool)
    score_of = dict(zip(entry["dtIds"], entry["dtScores"], strict=True))
    return ImageMatches(
        boxes=_corners(scorer.cocoDt, entry["dtIds"])[counted],
        scores=np.asarray(entry["dtScores"], dtype=np.float64)[counted],
        hit=(entry["dtMatches"][_IOU_50] > 0)[counted],
        objects=_corners(scorer.cocoGt, entry["gtIds"])[objects],
        found_at=np.array([score_of.get(key, -1.0) for key in entry["gtMatches"][_IOU_50]])[objects],
    )


def _corners(coco: COCO, ids: Sequence[int]) -> npt.NDArray[np.float64]:
    boxes = np.array([coco.anns[key]["bbox"] for key in ids], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _joined(parts: Sequence[ImageMatches]) -> ImageMatches:
    empty = np.zeros(0)
    none = ImageMatches(np.zeros((0, 4)), empty, empty.astype(bool), np.zeros((0, 4)), empty)
    return ImageMatches(
        **{field.name: np.concatenate([getattr(part, field.name) for part in (none, *parts)]) for field in fields(none)}
    )
