"""metrics.jsonl through interruptions, and what TensorBoard's writer is given."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec
from frs.errors import RuntimeMissing
from frs.training import Recipe
from frs.training.metrics import MetricsLog
from tests.frs.training.test_loop import Cut, Dead, objective, weights_after
from tests.frs.training.test_precision import Steep

RECIPE = Recipe(epochs=3, lr=2e-3, seed=5, log_every=1)  # three steps an epoch, saved at its end only


def lines(folder: Path) -> list[dict[str, Any]]:
    """Without the seconds, which no two trainings share."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for entry in read:
        entry.pop("seconds", None)
    return read


def test_every_step_and_epoch_has_its_line(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    _, history = weights_after(objective(small), rectangles, RECIPE, tmp_path)
    found = lines(tmp_path)
    assert [(entry["kind"], entry["step"], entry["epoch"]) for entry in found] == [
        *(("step", 1, 0), ("step", 2, 0), ("step", 3, 0), ("epoch", 3, 0)),
        *(("step", 4, 1), ("step", 5, 1), ("step", 6, 1), ("epoch", 6, 1)),
        *(("step", 7, 2), ("step", 8, 2), ("step", 9, 2), ("epoch", 9, 2)),
    ]
    for entry in found:
        assert entry["loss"] == pytest.approx(entry["classification"] + entry["box"], rel=1e-6)
    mean = sum(entry["loss"] for entry in found[:3]) / 3
    assert mean == pytest.approx(found[3]["loss"]) == pytest.approx(history[0].terms["loss"])
    assert all(entry["gradient_norm"] > 0 for entry in found if entry["kind"] == "step")


def test_some_steps_are_left_out(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, lr=2e-3, seed=5, log_every=4)
    weights_after(objective(small), rectangles, recipe, tmp_path)
    assert [entry["step"] for entry in lines(tmp_path) if entry["kind"] == "step"] == [4, 8]


@pytest.mark.parametrize("cut", [1, 4, 6, 8])
@pytest.mark.parametrize("by", [Dead, KeyboardInterrupt])
def test_an_interruption_leaves_neither_gaps_nor_duplicates(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, cut: int, by: type[BaseException]
) -> None:
    weights_after(objective(small), rectangles, RECIPE, tmp_path / "whole")
    with pytest.raises(by):
        weights_after(objective(small), rectangles, RECIPE, tmp_path / "cut", Cut(cut, by))
    assert len(lines(tmp_path / "cut")) == cut + (cut - 1) // 3  # up to the step itself
    weights_after(objective(small), rectangles, RECIPE, tmp_path / "cut")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_torn_line_and_what_follows_it_are_taken_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0, epochs=0, tensorboard=False)
    for step in (1, 2, 3):
        log.write("step", step, {"epoch": 0})
    log.write("epoch", 3, {"epoch": 0})
    log.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-5])
    MetricsLog(tmp_path, step=3, epochs=1, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    MetricsLog(tmp_path, step=2, epochs=0, tensorboard=False)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2]


def test_an_epoch_whose_end_was_not_saved_is_taken_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0, epochs=0, tensorboard=False)
    log.write("step", 3, {"epoch": 0})
    log.write("epoch", 3, {"epoch": 0})
    log.close()
    MetricsLog(tmp_path, step=3, epochs=0, tensorboard=False)
    assert [entry["kind"] for entry in lines(tmp_path)] == ["step"]


def test_a_norm_that_overflowed_is_null(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, lr=2e-3, seed=5, precision="fp16", log_every=1)
    weights_after(Steep(objective(small).detector), rectangles, recipe, tmp_path)
    found = lines(tmp_path)
    assert [entry["step"] for entry in found if entry.get("gradient_norm", 0) is None] == [5]
    assert [entry["skipped"] for entry in found if entry["kind"] == "epoch"] == [0, 1]


class StandIn:
    """In the place of torch.utils.tensorboard.SummaryWriter."""

    made: list[StandIn]

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, int]] = []
        self.closed = False
        StandIn.made.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert isinstance(scalar_value, (int, float))
        self.scalars.append((tag, global_step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_tensorboard_is_given_every_number_and_told_what_is_done_again(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    StandIn.made = []
    recipe = Recipe(epochs=2, lr=2e-3, seed=5, log_every=1, tensorboard=True)
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, recipe, tmp_path, Cut(5))
    weights_after(objective(small), rectangles, recipe, tmp_path)
    first, second = StandIn.made
    assert first.log_dir == second.log_dir == str(tmp_path / "tensorboard")
    assert (first.purge_step, second.purge_step) == (1, 4)
    assert first.closed
    assert second.closed
    assert [step for tag, step in first.scalars if tag == "step/loss"] == [1, 2, 3, 4, 5]
    assert [step for tag, step in second.scalars if tag == "step/box"] == [4, 5, 6]
    assert [step for tag, step in first.scalars + second.scalars if tag == "epoch/loss"] == [3, 6]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed here")
def test_a_machine_without_tensorboard_is_told_before_the_first_step(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, lr=2e-3, tensorboard=True)
    with pytest.raises(RuntimeMissing) as error:
        weights_after(objective(small), rectangles, recipe, tmp_path)
    assert str(error.value) == (
        "train.tensorboard is true, and the package tensorboard is not here; pip install tensorboard, or set it to false"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboards_own_writer_makes_a_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0, epochs=0, tensorboard=True)
    log.write("step", 1, {"loss": torch.pi})
    log.close()
    assert [path.name.startswith("events.out") for path in (tmp_path / "tensorboard").iterdir()] == [True]
