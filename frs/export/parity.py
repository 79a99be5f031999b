"""How far an exported file is from the detector that it was made of, on the same pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frs.edge.predictor import Detections, Predictor

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Parity:
    """images, boxes: how much was compared; boxes counts matched pairs and what found no partner.

    unmatched: part of the boxes without a partner, on either side; score_*: difference of the scores of a pair; box_*:
    greatest difference of a coordinate of a pair, pixels of the input. None where no pair was found.
    """

    images: int
    boxes: int
    unmatched: float
    score_p95: float | None
    score_max: float | None
    box_p95: float | None
    box_max: float | None


def parity(
    reference: Predictor,
    other: Predictor,
    batches: Iterable[npt.NDArray[np.uint8]],
    *,
    score_threshold: float = 0.05,
    detections: int = 100,
    score_margin: float = 0.01,
) -> Parity:
    """Both on the same batches, (N, 3, H, W) uint8.

    Boxes of one class are paired greedily, best IoU first, where it is at least 0.5. A box without a partner is not
    counted when a tie at a cut explains it: its score lies within the margin of the score threshold, or, where the other
    side is full (it has `detections` boxes), of the last score there.
    """
    images, faults = 0, 0
    score_differences: list[npt.NDArray[np.float32]] = []
    box_differences: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        for a, b in zip(reference.predict(batch), other.predict(batch), strict=True):
            left, right = match(a, b)
            images += 1
            score_differences.append(np.abs(a.scores[left] - b.scores[right]))
            box_differences.append(np.abs(a.boxes[left] - b.boxes[right]).max(axis=1, initial=0.0))
            for mine, theirs, paired in ((a, b, left), (b, a, right)):
                cut = score_threshold if len(theirs) < detections else float(theirs.scores.min())
                alone = np.delete(mine.scores, paired)
                faults += int((alone > cut + score_margin).sum())
    scores = np.concatenate(score_differences) if images else np.zeros(0, np.float32)
    shifts = np.concatenate(box_differences) if images else np.zeros(0, np.float32)
    compared = len(scores) + faults
    return Parity(
        images=images,
        boxes=compared,
        unmatched=faults / compared if compared else 0.0,
        score_p95=_percentile(scores, 95),
        score_max=_percentile(scores, 100),
        box_p95=_percentile(shifts, 95),
        box_max=_percentile(shifts, 100),
    )


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


def _iou(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    overlap: npt.NDArray[np.float32] = shared / np.maximum(area_a[:, None] + area_b[None, :] - shared, 1e-9)
    return overlap


def _percentile(values: npt.NDArray[np.float32], q: float) -> float | None:
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else None
