"""Trainings of several processes: signals, a runner that is killed, and machines that meet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.faults.conftest import Undisturbed
from tests.faults.lab import command, copy, entries, executed, run, wait_for_checkpoint
from tests.faults.test_kills import LAST_LINE
from tests.faults.test_workers import children

TEACHER = ("--until", "teacher", "--set", "teacher.train.epochs=40", "--set", "teacher.train.validate_every=0")


def gone(group: int, patience: float = 30.0) -> bool:
    """Whether no process of the group is left, or none is before long."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_student_of_two_ranks_is_interrupted_and_goes_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = copy(undisturbed.folder, tmp_path / "copy")
    options = ("--until", "student", "--set", "distill.share=0.9", "--set", "student.train.devices=2")
    process = start(folder, *options, "--set", "student.train.workers=1")
    wait_for_checkpoint(folder, "student", process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.startswith(LAST_LINE), said
    assert said.count("\n") == 1
    assert gone(process.pid)

    done = run(folder, *options)
    assert "student: continuing at step" in done.stdout
    assert executed(done.stdout) == {"student"}, "devices are no part of what control and teacher are"
    metrics = json.loads((folder / "runs/tiny/manifest.json").read_text())["stages"]["student"]["metrics"]
    assert metrics["ranks"] == 2
    weights = json.loads((entries(folder)["student"] / "outputs/distillation.json").read_text())
    assert weights["alpha"] > 0
    assert weights["beta"] > 0
    history = json.loads((entries(folder)["student"] / "outputs/history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(12))
    assert [epoch["epoch"] for epoch in history if epoch["AP"] is not None] == [3, 7, 11]


def test_a_signal_to_ranks_that_are_being_started_is_answered_in_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, *TEACHER, "--set", "teacher.train.devices=2")
    while len(children(process.pid)) < 3:  # the two, and the tracker of their semaphores
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # they import torch for longer
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.startswith(LAST_LINE), said
    assert said.count("\n") == 1
    assert gone(process.pid)


def test_no_rank_outlives_a_runner_that_is_killed_and_one_process_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *TEACHER, "--set", "teacher.train.devices=2")
    wait_for_checkpoint(tmp_path, "teacher", process)
    process.kill()
    process.communicate()
    assert gone(process.pid)
    assert "continuing at step" in run(tmp_path, *TEACHER).stdout


def test_two_machines_meet_and_end_with_the_same_weights(tmp_path: Path) -> None:
    """Two runners on one machine: what they say to each other is the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    keys = [
        f"{model}.train.{key}"
        for model in ("teacher", "student")
        for key in ("nodes=2", f"rendezvous=localhost:{port}")
    ]
    nodes = [part for key in keys for part in ("--set", key)]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    processes = [start(folder, "--until", "control", *nodes) for folder in folders]
    try:
        for process in reversed(processes):
            _, said = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()  # one that waits for the other
            process.wait()
    for model in ("teacher", "control"):
        first, second = ((folder / f"runs/tiny/{model}.safetensors").read_bytes() for folder in folders)
        assert first == second
