"""How far an exported file is from the detector that it was made of, on the same pixels. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frs.edge.predictor import Detections, Predictor
from frs.evaluation.coco import Row

MATCH_IOU = 0.5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """images, boxes: how much was compared; boxes counts pairs and what found no partner.

    unmatched: part of the boxes without a partner, on either side, each weighted by its `Compared` weight. score_*:
    difference of the scores of a pair; iou_*: overlap of a pair, its 5th percentile and lower quartile; box_*: greatest
    difference of a coordinate of a pair, in the pixels that the boxes are in. None where no pair was found.
    """

    images: int
    boxes: int
    unmatched: float
    score_p95: float | None
    score_max: float | None
    iou_p5: float | None
    iou_p25: float | None
    box_p95: float | None
    box_max: float | None


@dataclass(frozen=True)
class Compared:
    """One image. left, right: (P,) places of the pairs among the boxes of either side.

    scores, ious, shifts: (P,) of each pair: difference of the scores, overlap, greatest difference of a coordinate.
    paired: (P,) and alone: (A,): the weight of each pair, and of each box without a partner: how far its score is above the
    cut, the score below which it would not be there. So a box that barely clears the cut on one side and not on the other,
    whose score hardly changed, hardly counts; and no margin has to be chosen.
    """

    left: npt.NDArray[np.intp]
    right: npt.NDArray[np.intp]
    scores: Floats
    ious: Floats
    shifts: Floats
    paired: Floats
    alone: Floats

    @property
    def differences(self) -> Floats:
        """(P,) of each pair, in scores: what changed, and what of its weight no longer overlaps."""
        return self.scores + self.paired * (1 - self.ious)

    @property
    def disagreement(self) -> float:
        """Of the image, in scores: all that found no partner, and the differences of the pairs."""
        return float(self.alone.sum() + self.differences.sum())


def parity(
    reference: Predictor,
    other: Predictor,
    batches: Iterable[npt.NDArray[np.uint8]],
    *,
    score_threshold: float = 0.05,
    detections: int = 100,
) -> Parity:
    """Both on the same batches, (N, 3, H, W) uint8."""
    return summarise(
        [
            compare(a, b, score_threshold=score_threshold, detections=detections)
            for batch in batches
            for a, b in zip(reference.predict(batch), other.predict(batch), strict=True)
        ]
    )


def compare(a: Detections, b: Detections, *, score_threshold: float, detections: int) -> Compared:
    """One image, on either side.

    Boxes of one class are paired greedily, best IoU first, where it is at least 0.5. The cut is the score threshold or, for
    a box without a partner where the other side is full (it has `detections` boxes), the last score there.
    """
    left, right = match(a, b)
    alone = []
    for mine, theirs, taken in ((a, b, left), (b, a, right)):
        cut = score_threshold if len(theirs) < detections else float(theirs.scores.min())
        alone.append(np.clip(np.delete(mine.scores, taken) - cut, 0.0, None))
    return Compared(
        left=left,
        right=right,
        scores=np.abs(a.scores[left] - b.scores[right]),
        ious=_iou(a.boxes, b.boxes)[left, right],
        shifts=np.abs(a.boxes[left] - b.boxes[right]).max(axis=1, initial=0.0),
        paired=np.clip((a.scores[left] + b.scores[right]) / 2 - score_threshold, 0.0, None),
        alone=np.concatenate(alone),
    )


def summarise(images: Sequence[Compared]) -> Parity:
    """Over all images."""
    scores, ious, shifts, paired, alone = (
        np.concatenate([np.zeros(0, np.float32), *(getattr(image, name) for image in images)])
        for name in ("scores", "ious", "shifts", "paired", "alone")
    )
    weight = float(paired.sum() + alone.sum())
    return Parity(
        images=len(images),
        boxes=len(scores) + len(alone),
        unmatched=float(alone.sum()) / weight if weight else 0.0,
        score_p95=_percentile(scores, 95),
        score_max=_percentile(scores, 100),
        iou_p5=_percentile(ious, 5),
        iou_p25=_percentile(ious, 25),
        box_p95=_percentile(shifts, 95),
        box_max=_percentile(shifts, 100),
    )


def worst(images: Mapping[int, Compared], count: int) -> list[int]:
    """The keys of those that disagree most, the worst first; none that agrees to the bit."""
    ranked = sorted(images, key=lambda key: (-images[key].disagreement, key))
    return [key for key in ranked[:count] if images[key].disagreement > 0]


def by_image(rows: Iterable[Row], images: Iterable[int], category_ids: Sequence[int]) -> dict[int, Detections]:
    """COCO's result rows as detections of every image, found something or not; boxes in pixels of the image, best first."""
    labels = {category: label for label, category in enumerate(category_ids)}
    grouped: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["image_id"]].append(row)
    found = {}
    for image in images:
        best_first = sorted(grouped[image], key=lambda row: -row["score"])
        boxes = np.array([row["bbox"] for row in best_first], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found[image] = Detections(
            boxes,
            np.array([row["score"] for row in best_first], dtype=np.float32),
            np.array([labels[row["category_id"]] for row in best_first], dtype=np.int32),
        )
    return found


def match(a: Detections, b: Detections) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices into a and into b of the pairs."""
    overlap = np.where(a.labels[:, None] == b.labels[None, :], _iou(a.boxes, b.boxes), 0.0)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(b))
        if overlap[i, j] < MATCH_IOU:
            break
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return np.array(list(pairs), dtype=np.intp), np.array(list(pairs.values()), dtype=np.intp)


def _iou(a: Floats, b: Floats) -> Floats:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    overlap: Floats = shared / np.maximum(area_a[:, None] + area_b[None, :] - shared, 1e-9)
    return overlap


def _percentile(values: Floats, q: float) -> float | None:
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else None
