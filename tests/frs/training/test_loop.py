from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frs.data import CocoDataset
from frs.data.loader import TrainingLoader
from frs.data.transforms import Augment
from frs.detectors import RetinaNetSpec, build_detector
from frs.training import DetectionObjective, Device, Epoch, Objective, Recipe, train
from frs.training.optimiser import one_cycle

CPU = Device("cpu", 1, bf16=False)
AUGMENT = Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True, scale=(0.8, 1.25), colour=0.2)


class Silent:
    def update(self, done: float, total: float, **figures: float | str) -> None:
        pass

    def log(self, message: str) -> None:
        pass


class Dead(Exception):
    """As a kill: nothing is done about it."""


class Cut(Silent):
    """Stops the training at a step."""

    def __init__(self, step: int, by: type[BaseException] = Dead) -> None:
        self.step = step
        self.by = by

    def update(self, done: float, total: float, **figures: float | str) -> None:
        if done == self.step:
            raise self.by


class Told(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, message: str) -> None:
        self.said.append(message)


def loader(data: CocoDataset, *, rank: int = 0, ranks: int = 1) -> TrainingLoader:
    return TrainingLoader(
        data,
        height=64,
        width=64,
        batch=4,
        seed=5,
        augment=AUGMENT,
        drop_empty=False,
        workers=0,
        rank=rank,
        ranks=ranks,
    )


def objective(spec: RetinaNetSpec) -> DetectionObjective:
    torch.manual_seed(1)
    return DetectionObjective(build_detector(spec))


def weights_after(
    made: Objective,
    data: CocoDataset,
    recipe: Recipe,
    scratch: Path,
    watcher: Silent | None = None,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    history = train(made, loader(data), recipe, CPU, scratch=scratch, watcher=watcher or Silent())
    return made.detector.state_dict(), history


def test_the_learning_rate_rises_and_falls() -> None:
    assert one_cycle(0, 100, 0.1) == pytest.approx(0.04)
    assert one_cycle(5, 100, 0.1) == pytest.approx(0.52)
    assert one_cycle(10, 100, 0.1) == 1.0
    assert one_cycle(55, 100, 0.1) == pytest.approx(0.5)
    assert one_cycle(99, 100, 0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_the_loss_falls_and_the_detector_finds_the_rectangles(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    made = objective(small)
    _, history = weights_after(made, rectangles, Recipe(epochs=20, lr=5e-3), tmp_path)
    assert history[-1].terms["loss"] < 0.5 * history[0].terms["loss"]
    assert history[0].terms["loss"] == pytest.approx(
        history[0].terms["classification"] + history[0].terms["box"], rel=1e-5
    )


@pytest.mark.parametrize("cut", [1, 5, 7])
def test_an_interrupted_training_ends_with_the_same_bits(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, cut: int
) -> None:
    recipe = Recipe(epochs=3, lr=2e-3, seed=5, checkpoint_minutes=1e-9)
    whole, whole_history = weights_after(objective(small), rectangles, recipe, tmp_path / "whole")
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, recipe, tmp_path / "cut", Cut(cut))
    resumed, history = weights_after(objective(small), rectangles, recipe, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [epoch.terms for epoch in history] == [epoch.terms for epoch in whole_history]


def test_a_checkpoint_at_every_epoch_is_enough(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, lr=2e-3, seed=5)
    whole, _ = weights_after(objective(small), rectangles, recipe, tmp_path / "whole")
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, recipe, tmp_path / "cut", Cut(5))
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    resumed, _ = weights_after(objective(small), rectangles, recipe, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_frozen_backbone_stays_as_it_is(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    made = objective(small)
    before = {name: tensor.clone() for name, tensor in made.detector.state_dict().items()}
    weights_after(made, rectangles, Recipe(epochs=1, lr=1e-3, backbone_lr=0.0), tmp_path)
    changed = {name for name, tensor in made.detector.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.startswith("backbone.")}
    assert frozen
    assert changed.isdisjoint(frozen)
    assert len(changed) == len(before) - len(frozen)


def test_ap_is_measured_when_it_is_asked_for(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    made = objective(small)
    recipe = Recipe(epochs=4, lr=1e-3, validate_every=2)
    modes = []

    def evaluate() -> float:
        modes.append(made.detector.training)
        return 12.5

    history = train(made, loader(rectangles), recipe, CPU, scratch=tmp_path, watcher=Silent(), evaluate=evaluate)
    assert [epoch.AP for epoch in history] == [None, 12.5, None, 12.5]
    assert modes == [False, False]
