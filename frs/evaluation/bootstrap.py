"""Is a difference of AP more than the luck of the validation images? A paired bootstrap over images (Efron 1979).

COCO AP is no mean over images, so it is accumulated anew for every resample: pycocotools' matches are taken once, and an
image that is drawn n times counts n times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from frs.evaluation.coco import Row, score

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gain:
    """AP of b less AP of a, in percent, with the bounds of its interval; images: how many were resampled."""

    difference: float
    low: float
    high: float
    level: float
    samples: int
    images: int


def paired_bootstrap(
    annotations: Path,
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Gain:
    """The percentile interval of AP(b) - AP(a) over `samples` resamples of the images, the same ones for both."""
    pair = Matches.of(annotations, rows_a), Matches.of(annotations, rows_b)
    return resampled([pair], samples=samples, seed=seed, level=level)


def resampled(pairs: Sequence[tuple[Matches, Matches]], *, samples: int, seed: int = 0, level: float = 0.95) -> Gain:
    """Of the mean of several pairs' differences, such as those of several trainings, all on the same images."""
    images = pairs[0][0].images
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(images, np.full(images, 1 / images), size=samples)
    differences = np.array([difference(pairs, drawn) for drawn in counts])
    differences = differences[np.isfinite(differences)]  # a resample without any object has no AP
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    whole = difference(pairs, np.ones(images, dtype=np.int64))
    return Gain(whole, float(low), float(high), level, samples, images)


def difference(pairs: Sequence[tuple[Matches, Matches]], counts: Counts) -> float:
    """AP of the second less AP of the first, mean of the pairs, with image i there counts[i] times."""
    return float(np.mean([b.ap(counts) - a.ap(counts) for a, b in pairs]))


def verdict(gain: Gain) -> Literal["helped", "hurt", "cannot tell"]:
    """Whether the interval is clear of zero."""
    if gain.low > 0:
        return "helped"
    return "hurt" if gain.high < 0 else "cannot tell"


@dataclass(frozen=True)
class _Class:
    """Detections of one class over all images, best first: image (n,), matched and counted (T, n) for T IoUs.

    objects: (images,) how many there are to find.
    """

    image: npt.NDArray[np.intp]
    matched: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    objects: Counts


@dataclass(frozen=True)
class Matches:
    """What pycocotools matched, from which AP follows for any weighting of the images."""

    classes: tuple[_Class, ...]
    recalls: npt.NDArray[np.float64]
    images: int

    @classmethod
    def of(cls, annotations: Path, rows: Sequence[Row]) -> Matches:
        scorer = score(annotations, rows)
        params = scorer.params
        images, areas, limit = len(params.imgIds), len(params.areaRng), params.maxDets[-1]
        classes = []
        for k in range(len(params.catIds)):
            start = k * areas * images  # evalImgs is ordered by class, area range ("all" is the first), image
            found = [(i, e) for i, e in enumerate(scorer.evalImgs[start : start + images]) if e is not None]
            if found:
                classes.append(_gather(found, images, limit))
        return cls(tuple(classes), np.asarray(params.recThrs), images)

    def ap(self, counts: Counts) -> float:
        """COCO AP in percent when image i is there counts[i] times; NaN when nothing is left to find."""
        found = [_average_precision(each, counts, self.recalls) for each in self.classes]
        there = [value for value in found if value is not None]
        return 100.0 * float(np.mean(there)) if there else float("nan")


def _gather(found: list[tuple[int, dict[str, npt.NDArray[np.float64]]]], images: int, limit: int) -> _Class:
    scores = np.concatenate([np.asarray(e["dtScores"])[:limit] for _, e in found])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([np.asarray(e["dtMatches"])[:, :limit] for _, e in found], axis=1)[:, order] > 0
    ignored = np.concatenate([np.asarray(e["dtIgnore"])[:, :limit] for _, e in found], axis=1)[:, order] > 0
    image = np.concatenate([np.full(len(e["dtScores"][:limit]), i) for i, e in found])[order].astype(np.intp)
    objects = np.zeros(images, dtype=np.int64)
    for i, e in found:
        objects[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
    return _Class(image, matched & ~ignored, ~ignored, objects)


def _average_precision(each: _Class, counts: Counts, recalls: npt.NDArray[np.float64]) -> float | None:
    """As COCOeval.accumulate: precision made monotone, read at 101 recalls, averaged over the IoU thresholds."""
    objects = int(each.objects @ counts)
    if objects == 0:
        return None
    drawn = np.repeat(np.arange(len(each.image)), counts[each.image])
    hits = np.cumsum(each.matched[:, drawn], axis=1)
    seen = np.cumsum(each.counted[:, drawn], axis=1)
    precision = hits / np.maximum(seen, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for hit, curve in zip(hits / objects, precision, strict=True):
        at = np.searchsorted(hit, recalls, side="left")
        total += float(curve[at[at < curve.size]].sum()) / len(recalls)
    return total / len(hits)
