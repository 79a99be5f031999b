"""Layers back in higher precision, worst first, until an int8 file loses no more AP than it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from frs.export.layers import Layer


@dataclass(frozen=True)
class Step:
    """One file that was scored. kept: how many of the ranked layers it keeps; drop: AP lost against its source, percent."""

    kept: int
    drop: float


def rank(
    layers: Sequence[Layer], sqnr: Mapping[str, float | None], drops: Mapping[str, float] | None = None
) -> list[str]:
    """Names of the layers, those that hurt most first.

    By the AP that their group costs when it alone is quantised (drops: name of the group -> AP), where that was measured,
    and within a group, or where it was not, by their noise. sqnr: dB; None: no noise at all. A group that gained AP did so
    by chance, and is ranked as one that lost none.
    """

    def key(layer: Layer) -> tuple[float, float]:
        noise = sqnr[layer.name]
        return -max(drops[layer.group], 0.0) if drops else 0.0, math.inf if noise is None else noise

    return [layer.name for layer in sorted(layers, key=key)]


def fall_back(
    ranked: Sequence[str], drop: Callable[[frozenset[str]], float], limit: float | None
) -> tuple[frozenset[str], list[Step]]:
    """The layers to keep, and what was scored on the way.

    drop: the AP that a file loses which keeps these layers. limit: the most that it may lose; None: nothing is kept. How
    many of the ranked layers have to be kept is found by bisection, in 1 + log2(layers) scores: a loss that does not fall
    with every further layer may make it one of several answers, each within the limit. Where only all of them would do,
    they are kept, and the last step is that file.
    """
    steps = [Step(0, drop(frozenset()))]
    enough, too_few = len(ranked), 0
    if limit is None or steps[0].drop <= limit or not ranked:
        return frozenset(), steps
    while enough - too_few > 1:
        kept = (enough + too_few) // 2
        steps.append(Step(kept, drop(frozenset(ranked[:kept]))))
        if steps[-1].drop <= limit:
            enough = kept
        else:
            too_few = kept
    if enough == len(ranked):
        steps.append(Step(enough, drop(frozenset(ranked))))
    return frozenset(ranked[:enough]), steps
