"""Warm-up on series made by hand, and statistics against arithmetic; no clock is read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import chain, cycle, repeat

import numpy as np
import pytest

from frs.edge import timing
from frs.edge.timing import WarmUp, expanded_tail, median_interval, percentile, student_t, summarise, warm_up

MS = 1_000_000


def warmed(milliseconds: Iterator[float]) -> WarmUp:
    return warm_up(lambda: round(next(milliseconds) * MS))


def test_steady_runs_are_warm_after_three_windows_of_a_tenth_of_a_second() -> None:
    assert warmed(repeat(10.0)) == WarmUp(stable=True, runs=30, seconds=0.3)
    assert warmed(repeat(1.0)).runs == 300


def test_a_window_has_three_runs_however_slow() -> None:
    assert warmed(repeat(1000.0)) == WarmUp(stable=True, runs=9, seconds=9.0)


def test_it_goes_on_while_the_runs_get_faster() -> None:
    # Windows: 50 50, 40 40 40, 30 x 4, 25 x 4, then 20s: 25 and 20 are 25% apart, so that the last three must all be 20s.
    series = chain([50, 50, 50], [40] * 3, [30] * 4, [25] * 4, repeat(20))
    assert warmed(series) == WarmUp(stable=True, runs=14 + 15, seconds=0.15 + 0.12 + 0.12 + 0.1 + 0.3)


def test_five_percent_between_windows_are_stable_and_six_are_not() -> None:
    def windows(slower: float) -> Iterator[float]:
        return chain([20] * 5, [20 * slower] * 5, repeat(20))

    assert warmed(windows(1.05)).runs == 15
    assert warmed(windows(1.06)).runs == 25


def test_one_slow_run_among_many_does_not_make_a_window_unstable() -> None:
    assert warmed(chain([10] * 14, [80], repeat(10))).stable


def test_what_never_settles_is_given_up_after_three_seconds() -> None:
    wavering = cycle([20.0] * 5 + [25.0] * 4)
    found = warmed(wavering)
    assert not found.stable
    assert 3.0 <= found.seconds < 3.2
    growing = (1000 * 1.1**i for i in range(1000))
    assert warmed(growing).runs == 9, "three windows, even if that takes longer"


def test_percentiles_are_observed_values() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert [percentile(values, q) for q in (0, 25, 26, 50, 75, 100)] == [1.0, 1.0, 2.0, 2.0, 3.0, 4.0]


def test_summary_by_hand() -> None:
    runs = np.arange(100, 0, -1.0)  # 100 .. 1
    summary = summarise(np.array_split(np.random.default_rng(0).permutation(runs), 10))
    low, high = summary.pop("p50_interval")
    assert low < 50 < high
    assert summary == {
        "p50": 50.0,
        "p90": 90.0,
        "p95": 95.0,
        "p99": 99.0,
        "mean": 50.5,
        "min": 1.0,
        "std": round(statistics.stdev(range(1, 101)), 4),
        "runs": 100,
    }


@pytest.mark.parametrize(("freedom", "table"), [(7, 2.365), (9, 2.262), (14, 2.145), (30, 2.042), (120, 1.980)])
def test_students_t_as_tabulated(freedom: int, table: float) -> None:
    assert student_t(freedom) == pytest.approx(table, abs=1e-3)


def test_fewer_blocks_leave_out_less_at_each_end() -> None:
    # sqrt(8 / 7) * 2.365 = 2.528; a normal variable is below -2.528 in 0.574% of cases.
    assert expanded_tail(8) == pytest.approx(0.00574, abs=2e-5)
    assert expanded_tail(10_000) == pytest.approx(0.025, abs=1e-4)


def test_the_interval_of_eight_blocks_by_arithmetic() -> None:
    """Blocks of equal values 1 to 8: a resample's median is at most k where four or more of its eight blocks are, so that it is
    a binomial probability."""
    tail = expanded_tail(8)

    def at_most(k: int) -> float:
        return sum(math.comb(8, hits) * (k / 8) ** hits * (1 - k / 8) ** (8 - hits) for hits in range(4, 9))

    low = next(k for k in range(1, 9) if at_most(k) >= tail)
    high = next(k for k in range(1, 9) if at_most(k) >= 1 - tail)
    assert (low, high) == (1, 7)
    assert median_interval([np.full(5, float(k)) for k in range(1, 9)]) == (low, high)


def test_blocks_of_unequal_length_count_by_their_runs() -> None:
    """One long block outweighs seven short ones whenever it is drawn at all, in 1 - (7/8)^8 = 66% of the resamples."""
    low, high = median_interval([np.full(1000, 1.0), *(np.full(1, 5.0) for _ in range(7))])
    assert (low, high) == (1.0, 5.0)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_interval_covers_the_median_as_often_as_it_says(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 blocks with disturbances of their own (spread, in standard deviations of a run) or without: the truth is 0 by
    symmetry. The rank interval, which takes all runs for independent, is the counter-example."""
    monkeypatch.setattr(timing, "RESAMPLES", 1000)
    random = np.random.default_rng(1)
    trials, blocks, runs = 300, 8, 25
    covered = independent = 0
    ranks = 100 - 14, 100 + 13  # of 200: 1.96 * sqrt(200) / 2 = 13.9
    for _ in range(trials):
        times = random.normal(0, 1, (blocks, runs)) + random.normal(0, spread, (blocks, 1))
        low, high = median_interval(list(times))
        covered += low <= 0 <= high
        ordered = np.sort(times, axis=None)
        independent += ordered[ranks[0]] <= 0 <= ordered[ranks[1]]
    assert 0.92 <= covered / trials <= 0.985
    assert (independent / trials > 0.9) == (spread == 0), "so much for independence"


def test_of_few_blocks_no_interval_is_made_up() -> None:
    with pytest.raises(ValueError, match="7 blocks: fewer than 8"):
        median_interval([np.ones(100)] * 7)
