"""A training that is killed for real goes on, and ends with the very same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stages.conftest import SMALL, frs_pipeline

# Long enough to be killed in the middle, and a checkpoint at every step.
SETTINGS = ("--set", "teacher.train.epochs=6", "--set", "teacher.train.checkpoint_minutes=1e-6")


def checkpoint(folder: Path) -> Path | None:
    return next(folder.glob("runs/.store/teacher/*.partial/scratch/checkpoint.pt"), None)


def run_and_kill(folder: Path, how: signal.Signals) -> int:
    """Start the training, wait for a checkpoint, let a few more steps go by, and stop the process."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(SMALL), "--until", "teacher", *SETTINGS]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while checkpoint(folder) is None:
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(how)
        return process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path, how: signal.Signals) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    arguments = ("run", SMALL, "--until", "teacher", *SETTINGS)
    frs_pipeline(*arguments, cwd=whole)
    code = run_and_kill(killed, how)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    found = checkpoint(killed)
    assert found is not None
    inode = found.parent.parent.stat().st_ino
    done = frs_pipeline(*arguments, cwd=killed)
    assert "continuing at step" in done.stdout
    stored = next((killed / "runs/.store/teacher").glob("*/outputs"))
    assert stored.parent.stat().st_ino == inode, "the attempt itself became the entry"
    name = "runs/small/teacher.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
