"""The order in which layers are kept, and how many."""

from __future__ import annotations

import math

import pytest

from frs.export.fallback import Step, fall_back, rank
from frs.export.layers import Layer

LAYERS = [Layer(name, group, (name,)) for name, group in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "z"))]


def test_by_what_the_group_costs_and_then_by_noise() -> None:
    noise = {"a": 40.0, "b": 20.0, "c": None, "d": 10.0}
    assert rank(LAYERS, noise) == ["d", "b", "a", "c"]
    assert rank(LAYERS, noise, {"x": 0.2, "y": 1.5, "z": -0.3}) == ["c", "b", "a", "d"]
    # what gains by chance is no better than what costs nothing
    assert rank(LAYERS, noise, {"x": -0.2, "y": 0.0, "z": -0.3}) == ["d", "b", "a", "c"]


RANKED = [f"layer{i}" for i in range(20)]


@pytest.mark.parametrize("needed", [0, 1, 2, 7, 19, 20])
def test_as_few_as_need_be_and_few_scores(needed: int) -> None:
    asked: list[frozenset[str]] = []

    def drop(kept: frozenset[str]) -> float:
        asked.append(kept)
        return 0.1 * max(needed - len(kept), 0)

    kept, steps = fall_back(RANKED, drop, 0.0)
    assert kept == set(RANKED[:needed])
    assert len(asked) == len(set(asked)) <= 2 + math.ceil(math.log2(len(RANKED)))
    assert asked == [frozenset(RANKED[: step.kept]) for step in steps]
    assert needed in [step.kept for step in steps]
    assert steps[0] == Step(0, pytest.approx(0.1 * needed))


def test_without_a_limit_or_within_it_nothing_is_kept() -> None:
    assert fall_back(RANKED, lambda kept: 30.0, None) == (frozenset(), [Step(0, 30.0)])
    assert fall_back(RANKED, lambda kept: 0.5, 0.5) == (frozenset(), [Step(0, 0.5)])


def test_where_nothing_helps_everything_is_kept_and_the_search_ends() -> None:
    kept, steps = fall_back(RANKED, lambda kept: 9.0, 0.5)
    assert kept == set(RANKED)
    assert steps[-1] == Step(len(RANKED), 9.0)
    assert fall_back([], lambda kept: 9.0, 0.5) == (frozenset(), [Step(0, 9.0)])
