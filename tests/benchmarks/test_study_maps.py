"""How much of the score lies in boxes, by hand."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.study_maps import Level, Look, table

PHOTOGRAPH = np.zeros((16, 16, 3), dtype=np.uint8)


def level(stride: int, mask: list[list[float]], score: list[list[float]]) -> Level:
    return Level(stride, torch.tensor([mask]), torch.tensor([score]))


def test_places_and_scores_are_summed_over_the_images() -> None:
    looks = [
        Look(
            PHOTOGRAPH,
            torch.zeros(1, 4),
            (level(8, [[1, 0], [0, 0]], [[0.6, 0.1], [0.1, 0.0]]), level(16, [[1]], [[0.5]])),
        ),
        Look(
            PHOTOGRAPH,
            torch.zeros(0, 4),
            (level(8, [[0, 0], [0, 0]], [[0.2, 0.0], [0.0, 0.0]]), level(16, [[0]], [[0.1]])),
        ),
    ]
    # Stride 8: 1 of 8 places, 0.6 of 1.0; outside 0.4 over 7. Stride 16: 1 of 2 places, 0.5 of 0.6; outside 0.1 over 1.
    assert table((8, 16), looks).splitlines()[2:] == [
        "| 8 | 12% | 60% | 0.600 | 0.057 |",
        "| 16 | 50% | 83% | 0.500 | 0.100 |",
    ]


def test_a_level_that_is_all_in_boxes_has_no_outside() -> None:
    (line,) = table((8,), [Look(PHOTOGRAPH, torch.zeros(1, 4), (level(8, [[1]], [[0.25]]),))]).splitlines()[2:]
    assert line == "| 8 | 100% | 100% | 0.250 | 0.000 |"
