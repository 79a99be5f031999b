"""A training that is told to stop, or that cannot go on: what it saves, and how it goes on."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.lab import command, copy, executed, reused, run, wait_for, wait_for_checkpoint
from tests.faults.test_kills import CODES, LAST_LINE, check_whole

# Two long epochs without a checkpoint in them.
STEPS = 400
LONG = (
    "--set", f"data.limit={STEPS}", "--set", "teacher.train.batch=1", "--set", "teacher.train.epochs=2",
    "--set", "teacher.train.validate_every=0", "--set", "teacher.train.checkpoint_minutes=1000", "--until", "teacher",
)  # fmt: skip
WEIGHTS = "runs/tiny/teacher.safetensors"


@pytest.fixture(scope="module")
def long_weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("long")
    run(folder, *LONG)
    return (folder / WEIGHTS).read_bytes()


def worked(process: subprocess.Popen[str]) -> float:
    """Seconds of processor time that the process has had."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_the_second_epoch(folder: Path) -> subprocess.Popen[str]:
    """A training that has saved its first epoch and has done some steps more."""
    process = subprocess.Popen(
        command(*LONG), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_checkpoint(folder, "teacher", process)
    before = worked(process)
    while worked(process) < before + 0.3:
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_on_at_a_step_that_no_periodic_checkpoint_holds(
    tmp_path: Path, long_weights: bytes, how: signal.Signals
) -> None:
    process = in_the_second_epoch(tmp_path)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == CODES[how]
    assert said.startswith(LAST_LINE)
    assert said.count("\n") == 1
    done = run(tmp_path, *LONG)
    reached = re.search(r"continuing at step (\d+) \(epoch 2\)", done.stdout)
    assert reached is not None
    assert STEPS < int(reached[1]) < 2 * STEPS
    assert (tmp_path / WEIGHTS).read_bytes() == long_weights


@pytest.mark.parametrize("pause", [0.0, 0.003, pytest.param(0.03, marks=pytest.mark.campaign)])
def test_signals_upon_signals_change_nothing(tmp_path: Path, long_weights: bytes, pause: float) -> None:
    process = in_the_second_epoch(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT) * 20:
        process.send_signal(number)
        time.sleep(pause)
    _, said = process.communicate(timeout=120)
    assert process.returncode in (130, 143)
    assert said.startswith(LAST_LINE), said
    assert said.count("\n") == 1
    done = run(tmp_path, *LONG)
    reached = re.search(r"continuing at step (\d+)", done.stdout)
    assert reached is not None
    assert STEPS < int(reached[1]) < 2 * STEPS
    assert (tmp_path / WEIGHTS).read_bytes() == long_weights


@pytest.mark.parametrize("nth", [1, *(pytest.param(t, marks=pytest.mark.campaign) for t in range(2, 7))])
def test_a_signal_while_a_checkpoint_is_written(tmp_path: Path, undisturbed: Undisturbed, nth: int) -> None:
    """tiny.yaml has one written at every step."""
    process = subprocess.Popen(
        command("--until", "teacher"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = 0
    while seen < nth:
        assert process.poll() is None
        seen += bool(list(tmp_path.glob("runs/.store/teacher/*/scratch/checkpoint.pt.tmp")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.startswith(LAST_LINE)
    assert "continuing at step" in run(tmp_path, "--until", "teacher").stdout
    check_whole(tmp_path, undisturbed, until="teacher")


@pytest.mark.campaign
@pytest.mark.parametrize("stage", ["teacher", "engine", "profile"])
def test_what_a_killed_process_had_started_does_no_harm(tmp_path: Path, undisturbed: Undisturbed, stage: str) -> None:
    """Only the process itself is killed, as where memory runs out; builders, loaders and timers outlive it."""
    options = ("--set", "teacher.train.workers=2", "--until", stage)
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command(*options), cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    wait_for(log, f" {stage}: starts", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not children.read_text():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    run(tmp_path, *options)
    check_whole(tmp_path, undisturbed, until=stage)


def test_a_loss_that_is_not_finite_names_the_step_and_the_images(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """A feature term that is weighted beyond all measure: finite while w is small."""
    folder = copy(undisturbed.folder, tmp_path / "copy")
    options = (
        "--set",
        "distill.alpha=1e30",
        "--set",
        "distill.beta=0",
        "--set",
        "distill.warmup_steps=8",
        "--until",
        "student",
    )
    failed = run(folder, *options, code=1)
    told = re.fullmatch(
        r"frs-pipeline: stage student: step (\d+): not finite: gradient; lower train\.lr, or look at the boxes of the "
        r"batch's images, whose ids are in (.+)\. The training is saved up to step (\d+)\n",
        failed.stderr,
    )
    assert told is not None, failed.stderr
    record = json.loads(Path(told[2]).read_text())
    assert record["step"] == int(told[1]) == int(told[3]) > 0
    assert record["figures"]["gradient"] == "inf"
    assert math.isfinite(float(record["figures"]["total"]))
    images = json.loads((folder / "runs/tiny/manifest.json").read_text())["stages"]["data"]["path"]
    train = json.loads((folder / "runs" / images / "outputs/train.json").read_text())
    assert set(record["image_ids"]) <= {image["id"] for image in train["images"]}
    assert len(record["image_ids"]) == 2
    checkpoint = Path(told[2]).with_name("checkpoint.pt")
    _all_finite(checkpoint)
    assert f"continuing at step {told[1]}" in run(folder, *options, code=1).stdout
    assert executed(run(folder).stdout) == set(), "the run as it was is untouched"


def test_a_training_too_short_to_be_distilled_says_so_before_it_begins(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    folder = copy(undisturbed.folder, tmp_path / "copy")
    failed = run(folder, "--set", "distill.auto_steps=24", "--until", "student", code=1)
    assert failed.stderr == (
        "frs-pipeline: stage preflight: the trainings would be spoilt, so none was started\n"
        "  distillation: student.train has 24 steps, and distill.auto_steps measures alpha and beta on the first "
        "24, so nothing would be distilled; lower distill.auto_steps, or train for more epochs\n"
    )
    assert executed(run(folder, "--set", "distill.auto_steps=23", "--until", "student").stdout) == {
        "preflight",
        "student",
    }


def _all_finite(checkpoint: Path) -> None:
    import torch

    state = torch.load(checkpoint, weights_only=True)
    moments = [value for each in state["optimizer"]["state"].values() for value in each.values()]
    values = [value for value in [*state["objective"].values(), *moments] if torch.is_tensor(value)]
    assert len(values) > 20
    assert all(bool(torch.isfinite(value).all()) for value in values)


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path, undisturbed: Undisturbed) -> None:
    process = subprocess.Popen(command("--until", "teacher"), cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for_checkpoint(tmp_path, "teacher", process)
    process.kill()
    process.wait()
    how = ("--set", "teacher.train.workers=1", "--set", "teacher.train.checkpoint_minutes=5")
    done = run(tmp_path, "--until", "teacher", *how)
    assert "continuing at step" in done.stdout
    check_whole(tmp_path, undisturbed, until="teacher")
    assert reused(run(tmp_path, "--until", "teacher").stdout) == {"data", "preflight", "teacher"}
