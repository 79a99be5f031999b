"""Warm-up and statistics of timed runs. Nothing here reads a clock.

Warm-up: TensorRT's trtexec warms up for 200 ms and then measures for at least 3 s; google-benchmark and criterion warm up
for a set time too. None of them looks whether that was enough. Triton's perf_analyzer does: it takes a measurement for
stable when the greatest of its last three windows is within 10% of the least. Here both are asked for.

Interval: runs that follow each other are not independent (a disturbance slows a whole row of them), so that an interval
which takes them for independent is too narrow. The files are timed in blocks that alternate, a file's blocks lie apart,
and so it is blocks that are resampled: a cluster bootstrap. Of few clusters its percentiles are too narrow as well; the
expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4),
2015, section 5.3) widens them to what Student's t asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Any

import numpy as np
import numpy.typing as npt

WINDOW_NS = 100_000_000
WINDOW_RUNS = 3
WINDOWS = 3
SPREAD = 0.05
LIMIT_NS = 3_000_000_000
MINIMUM_BLOCKS = 8
RESAMPLES = 4000
_CHUNK = 200
"""Resamples in memory at a time."""

Milliseconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WarmUp:
    """stable: whether the times had settled when it ended."""

    stable: bool
    runs: int
    seconds: float


def warm_up(run: Callable[[], int]) -> WarmUp:
    """Until the medians of the last three windows are within 5% of each other, or 3 s have passed.

    run: does it once and answers with the nanoseconds it took. A window has at least 3 runs and lasts at least 100 ms, so
    that the whole lasts at least 300 ms.
    """
    medians: list[float] = []
    runs = total = 0
    while True:
        window: list[int] = []
        while len(window) < WINDOW_RUNS or sum(window) < WINDOW_NS:
            window.append(run())
        medians.append(median(window))
        runs += len(window)
        total += sum(window)
        recent = medians[-WINDOWS:]
        stable = len(recent) == WINDOWS and max(recent) <= (1 + SPREAD) * min(recent)
        if stable or (len(recent) == WINDOWS and total >= LIMIT_NS):
            return WarmUp(stable, runs, total / 1e9)


def summarise(blocks: Sequence[Milliseconds]) -> dict[str, Any]:
    """p50 and its 95% interval, p90, p95, p99, mean, min, std and runs. blocks: the times of each, in the order they ran.

    Percentiles are observed values (the smallest that the given part of the runs does not exceed); std is of the runs.
    Raises ValueError for fewer than 8 blocks, of which no interval can be had.
    """
    runs = np.concatenate(blocks)
    return {
        "p50": round(percentile(runs, 50), 4),
        "p50_interval": [round(end, 4) for end in median_interval(blocks)],
        **{f"p{q}": round(percentile(runs, q), 4) for q in (90, 95, 99)},
        "mean": round(float(runs.mean()), 4),
        "min": round(float(runs.min()), 4),
        "std": round(float(runs.std(ddof=1)), 4),
        "runs": len(runs),
    }


def percentile(values: npt.NDArray[Any], q: float) -> float:
    """The smallest of the values that at least q percent of them do not exceed."""
    return float(np.percentile(values, q, method="inverted_cdf"))


def median_interval(blocks: Sequence[Milliseconds], seed: int = 0) -> tuple[float, float]:
    """The median's 95% interval: the expanded percentiles of medians of resampled blocks.

    Raises ValueError for fewer than 8 blocks.
    """
    count = len(blocks)
    if count < MINIMUM_BLOCKS:
        raise ValueError(f"{count} blocks: fewer than {MINIMUM_BLOCKS} say nothing about how blocks differ")
    values = np.concatenate(blocks)
    order = np.argsort(values, kind="stable")
    owners = np.repeat(np.arange(count), [len(block) for block in blocks])[order]
    random = np.random.default_rng(seed)
    medians = np.concatenate(
        [
            values[order][_middles(random.multinomial(count, np.full(count, 1 / count), size=_CHUNK)[:, owners])]
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    tail = expanded_tail(count)
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


def _middles(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Where the median of sorted values lies that occur as often as each row of weights says."""
    seen = weights.cumsum(axis=1)
    middles: npt.NDArray[np.intp] = (2 * seen >= seen[:, -1:]).argmax(axis=1)
    return middles


def expanded_tail(count: int) -> float:
    """What is left out at each end of a 95% interval from so many clusters: P(Z < -sqrt(n / (n - 1)) * t(0.975, n - 1))."""
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_t(count - 1))


def student_t(freedom: int) -> float:
    """The 97.5th percentile of Student's t: Cornish and Fisher's series (Abramowitz and Stegun, 26.7.5).

    Within 0.001 of the tables from 7 degrees of freedom on.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
