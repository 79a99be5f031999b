"""The running mean of the weights, against numpy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec
from frs.training import DetectionObjective, Recipe, train
from tests.frs.training.test_loop import CPU, Cut, Dead, Silent, loader, objective, weights_after

DECAY = 0.3
RECIPE = Recipe(epochs=3, lr=2e-3, seed=5, ema=DECAY, validate_every=1, checkpoint_minutes=1e-9)
Weights = dict[str, npt.NDArray[np.float64]]


def weights(made: DetectionObjective) -> Weights:
    return {name: tensor.double().numpy().copy() for name, tensor in made.detector.state_dict().items()}


class Watching(Silent):
    def __init__(self, made: DetectionObjective) -> None:
        self.made = made
        self.steps = [weights(made)]

    def update(self, done: float, total: float, **figures: float | str) -> None:
        self.steps.append(weights(self.made))


def by_hand(steps: list[Weights]) -> Weights:
    mean = dict(steps[0])
    for t, step in enumerate(steps[1:], start=1):
        d = min(DECAY, (1 + t) / (10 + t))
        mean = {name: d * mean[name] + (1 - d) * step[name] for name in mean}
    return {name: steps[-1][name] if name.endswith("num_batches_tracked") else mean[name] for name in mean}


def close(ours: Weights, theirs: Weights) -> bool:
    return all(np.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6) for name in theirs)


def test_the_mean_is_what_is_validated_and_what_comes_of_it(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    made = objective(small)
    watching = Watching(made)
    validated: list[Weights] = []

    def evaluate() -> float:
        validated.append(weights(made))
        return 1.0

    train(made, loader(rectangles), RECIPE, CPU, scratch=tmp_path, watcher=watching, evaluate=evaluate)
    assert [close(found, by_hand(watching.steps[: 3 * n + 4])) for n, found in enumerate(validated)] == [True] * 3
    assert close(weights(made), by_hand(watching.steps))
    assert not close(weights(made), watching.steps[-1])


def test_the_training_itself_does_not_see_the_mean(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    made, plain = objective(small), objective(small)
    watching, watched = Watching(made), Watching(plain)
    train(made, loader(rectangles), RECIPE, CPU, scratch=tmp_path / "ema", watcher=watching, evaluate=lambda: 1.0)
    without = Recipe(epochs=3, lr=2e-3, seed=5)
    train(plain, loader(rectangles), without, CPU, scratch=tmp_path / "plain", watcher=watched)
    assert all(np.array_equal(watching.steps[-1][name], watched.steps[-1][name]) for name in watched.steps[-1])


@pytest.mark.parametrize("cut", [2, 5, 6, 9])
def test_it_goes_on_with_the_same_bits(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, cut: int) -> None:
    whole, _ = weights_after(objective(small), rectangles, RECIPE, tmp_path / "whole")
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, RECIPE, tmp_path / "cut", Cut(cut))
    resumed, _ = weights_after(objective(small), rectangles, RECIPE, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("when", ["while the mean is put in", "while it is measured"])
def test_a_signal_around_a_measurement_costs_neither_weights_nor_mean(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from frs.training import ema

    whole, _ = weights_after(objective(small), rectangles, RECIPE, tmp_path / "whole")
    swap = ema.RunningMean.swap
    came: list[int] = []

    def interrupted(self: ema.RunningMean) -> None:
        swap(self)
        if not came and when == "while the mean is put in":
            came.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    def evaluate() -> float:
        if not came:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(ema.RunningMean, "swap", interrupted)
    made = objective(small)
    before = Watching(made)
    with pytest.raises(KeyboardInterrupt):
        train(made, loader(rectangles), RECIPE, CPU, scratch=tmp_path, watcher=before, evaluate=evaluate)
    assert all(np.array_equal(before.steps[-1][name], array) for name, array in weights(made).items())
    monkeypatch.undo()
    resumed, _ = weights_after(objective(small), rectangles, RECIPE, tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
