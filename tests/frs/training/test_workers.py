"""The processes that load images serve a whole training, and are gone behind it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from frs.data import CocoDataset
from frs.data.loader import TrainingLoader
from frs.detectors import RetinaNetSpec
from frs.errors import TrainingError
from frs.training import Recipe, train
from tests.frs.training.test_loop import AUGMENT, CPU, Silent, objective, weights_after


def processes() -> set[int]:
    return {int(each) for each in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def loader(data: CocoDataset) -> TrainingLoader:
    return TrainingLoader(data, height=64, width=64, batch=4, seed=5, augment=AUGMENT, drop_empty=False, workers=2)


def test_the_same_processes_serve_every_epoch_and_end_with_the_training(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    before, seen = processes(), []
    recipe = Recipe(epochs=3, lr=2e-3, seed=5, validate_every=1)

    def evaluate() -> None:
        seen.append(processes() - before)

    made = objective(small)
    train(made, loader(rectangles), recipe, CPU, scratch=tmp_path / "a", watcher=Silent(), evaluate=evaluate)
    assert len(seen) == 3
    assert len(seen[0]) == 2
    assert seen[0] == seen[1] == seen[2]
    assert processes() == before
    alone, _ = weights_after(objective(small), rectangles, Recipe(epochs=3, lr=2e-3, seed=5), tmp_path / "b")
    assert all(torch.equal(alone[name], tensor) for name, tensor in made.detector.state_dict().items())


def test_a_process_that_dies_between_two_epochs_is_an_error_of_the_training(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    before = processes()

    def evaluate() -> None:
        os.kill(min(processes() - before), signal.SIGKILL)
        time.sleep(10)  # torch's word of it comes as an exception

    with pytest.raises(TrainingError, match="a process that loads images has died"):
        train(
            objective(small), loader(rectangles), Recipe(epochs=2, lr=2e-3, seed=5, validate_every=1), CPU,
            scratch=tmp_path, watcher=Silent(), evaluate=evaluate,
        )  # fmt: skip
    assert processes() == before
    assert (tmp_path / "checkpoint.pt").exists()


def test_an_epoch_that_is_left_early_is_taken_up_where_it_is_asked_for(rectangles: CocoDataset) -> None:
    made = loader(rectangles)
    whole = [batch.image_ids for batch in made.epoch(1)]
    left = made.epoch(0)
    next(left)
    assert [batch.image_ids for batch in made.epoch(1, start_step=1)] == whole[1:]
    assert next(made.epoch(1)).image_ids == whole[0]
    made.close()
