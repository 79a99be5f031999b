"""What a training does when it is interrupted, when a figure is not finite, and when its checkpoint is damaged."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec, Targets
from frs.errors import TrainingError
from frs.training import DetectionObjective, Recipe, Terms, checkpoint, train
from frs.training.checkpoint import Checkpoint
from tests.frs.training.test_loop import CPU, Cut, Dead, Silent, Told, loader, objective, weights_after

RARELY = Recipe(epochs=3, lr=2e-3, seed=5)  # three steps an epoch, saved at its end only
OFTEN = Recipe(epochs=3, lr=2e-3, seed=5, checkpoint_minutes=1e-9)


@pytest.fixture(scope="module")
def whole(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of an undisturbed training."""
    return weights_after(objective(small), rectangles, RARELY, tmp_path_factory.mktemp("whole"))[0]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_an_interruption_is_saved_at_the_step_that_it_found(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, whole: dict[str, Tensor], cut: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        weights_after(objective(small), rectangles, RARELY, tmp_path, Cut(cut, KeyboardInterrupt))
    told = Told()
    resumed, history = weights_after(objective(small), rectangles, RARELY, tmp_path, told)
    assert told.said == [f"continuing at step {cut} (epoch {cut // 3 + 1})"]
    assert same(resumed, whole)
    assert [epoch.epoch for epoch in history] == [0, 1, 2]


class Signalled(DetectionObjective):
    """In the middle of its fifth step a signal comes."""

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        terms: Terms = super().forward(images, targets, step)
        return terms


def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        weights_after(Signalled(objective(small).detector), rectangles, RARELY, tmp_path)
    told = Told()
    resumed, _ = weights_after(objective(small), rectangles, RARELY, tmp_path, told)
    assert told.said == ["continuing at step 5 (epoch 2)"]
    assert same(resumed, whole)


def test_an_interrupted_measurement_of_ap_does_not_cost_the_epoch(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    recipe = Recipe(epochs=3, lr=2e-3, seed=5, validate_every=2)

    def interrupted() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            objective(small), loader(rectangles), recipe, CPU, scratch=tmp_path, watcher=Silent(), evaluate=interrupted
        )
    told, resumed = Told(), objective(small)
    history = train(resumed, loader(rectangles), recipe, CPU, scratch=tmp_path, watcher=told, evaluate=lambda: 12.5)
    assert told.said == ["continuing at step 6 (epoch 3)"]
    assert [(epoch.epoch, epoch.AP) for epoch in history] == [(0, None), (1, 12.5), (2, None)]
    assert same(resumed.detector.state_dict(), whole)


def test_nothing_is_saved_when_nothing_was_done(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    data = loader(rectangles)
    data.epoch = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        train(objective(small), data, RARELY, CPU, scratch=tmp_path, watcher=Silent())
    assert list(tmp_path.iterdir()) == []


class Broken(DetectionObjective):
    """At the sixth step a term, or only its gradient, is no number."""

    how = "term"

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        terms: Terms = super().forward(images, targets, step)
        if step == 5:
            parameter = next(self.detector.parameters())
            nothing = (parameter.flatten()[0] * 0.0).abs().sqrt()  # 0, and 0/0 is its gradient
            box = terms.parts["box"] + (nothing if self.how == "gradient" else math.nan)
            return Terms(terms.total + (box - terms.parts["box"]), {**terms.parts, "box": box})
        return terms


@pytest.mark.parametrize(("how", "named"), [("term", "box, total"), ("gradient", "gradient")])
def test_what_is_not_finite_stops_the_training_and_keeps_the_last_good_checkpoint(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, whole: dict[str, Tensor], how: str, named: str
) -> None:
    broken = Broken(objective(small).detector)
    broken.how = how
    with pytest.raises(TrainingError) as error:
        weights_after(broken, rectangles, OFTEN, tmp_path)
    path = tmp_path / "not_finite.json"
    assert str(error.value) == (
        f"step 5: not finite: {named}; lower train.lr, or look at the boxes of the batch's images, whose ids are in {path}. "
        "The training is saved up to step 5"
    )
    record = json.loads(path.read_text())
    drawn = [batch.image_ids for batch in loader(rectangles).epoch(1)]
    assert tuple(record["image_ids"]) == drawn[5 - 3]
    assert record["step"] == 5
    assert {name for name, value in record["figures"].items() if value == "nan"} == set(named.split(", "))
    resumed, _ = weights_after(objective(small), rectangles, OFTEN, tmp_path)
    assert same(resumed, whole)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (["checkpoint.pt"], ["continuing at step 4 (epoch 2)"]),
        (["checkpoint.pt", "checkpoint.previous.pt"], []),
        (["checkpoint.previous.pt"], ["continuing at step 5 (epoch 2)"]),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    rectangles: CocoDataset,
    small: RetinaNetSpec,
    tmp_path: Path,
    whole: dict[str, Tensor],
    damaged: list[str],
    said: list[str],
) -> None:
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, OFTEN, tmp_path, Cut(6))
    for name in damaged:
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content)
    told = Told()
    resumed, _ = weights_after(objective(small), rectangles, OFTEN, tmp_path, told)
    passed = [line for line in told.said if "is damaged" in line]
    assert len(passed) == (len(damaged) if "checkpoint.pt" in damaged else 0)
    assert [line for line in told.said if line not in passed] == said
    assert same(resumed, whole)


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(
    rectangles: CocoDataset,
    small: RetinaNetSpec,
    tmp_path: Path,
    whole: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []

    def interrupting(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr("frs.training.checkpoint.os.fsync", interrupting)
    with pytest.raises(KeyboardInterrupt):
        weights_after(objective(small), rectangles, OFTEN, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "checkpoint.pt.tmp").exists()
    resumed, _ = weights_after(objective(small), rectangles, OFTEN, tmp_path)
    assert same(resumed, whole)


def saved(folder: Path, step: int) -> Checkpoint:
    made = Checkpoint(step, {"w": torch.arange(40.0)}, {"lr": 0.5}, [{"epoch": 0}], {"loss": 1.5}, {"w": 1.0})
    checkpoint.save(folder, made)
    return made


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.previous.pt")
    (tmp_path / "checkpoint.pt.tmp").write_bytes(b"half")
    found = checkpoint.load(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        saved(tmp_path, step)
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    told: list[str] = []
    assert checkpoint.load(tmp_path, told.append) is not None
    assert told == [
        "checkpoint.pt is damaged (its content is not what its sha256 says) and is passed over; it is kept as "
        "checkpoint.damaged.pt"
    ]

    def killed(self: Path, target: Path) -> Path:
        raise Dead

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Dead):
        saved(tmp_path, 3)
    found = checkpoint.load(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1
    assert (tmp_path / "checkpoint.damaged.pt").read_bytes() == b"damaged"


def test_no_flipped_bit_is_ever_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            assert checkpoint.load(tmp_path, lambda _: None) is None


@pytest.mark.parametrize(
    ("limit", "error"), [("resource.RLIMIT_AS", "memory"), ("resource.RLIMIT_NOFILE", "Too many open files")]
)
def test_a_checkpoint_that_the_machine_cannot_read_is_not_taken_for_damaged(
    tmp_path: Path, limit: str, error: str
) -> None:
    """Else a training of a week would start anew because another process had taken the memory."""
    checkpoint.save(tmp_path, Checkpoint(7, {"w": torch.zeros(20_000_000)}, {}, [], {}, {}))
    script = f"""
import resource, sys, torch
from pathlib import Path
from frs.training import checkpoint
checkpoint.load(Path("nothing"), print)
torch.load(Path(sys.argv[2]), weights_only=True)  # what is imported at the first use is imported now
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
most = used + 40_000_000 if {limit} == resource.RLIMIT_AS else 3
resource.setrlimit({limit}, (most, most))
checkpoint.load(Path(sys.argv[1]), print)
"""
    small = tmp_path / "small.pt"
    torch.save({"w": torch.zeros(1)}, small)
    done = subprocess.run([sys.executable, "-c", script, tmp_path, small], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1]
    assert "damaged" not in done.stdout
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(60)])
def test_garbage_for_a_checkpoint_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    told: list[str] = []
    assert checkpoint.load(tmp_path, told.append) is None
    assert len(told) == 1
