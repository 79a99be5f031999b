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
WEIGHTS = "runs/small/teacher.safetensors"
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    frs_pipeline("run", SMALL, "--until", "teacher", *SETTINGS, cwd=folder)
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path, undisturbed: bytes, how: signal.Signals) -> None:
    code = run_and_kill(tmp_path, how)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    found = checkpoint(tmp_path)
    assert found is not None
    inode = found.parent.parent.stat().st_ino
    done = frs_pipeline("run", SMALL, "--until", "teacher", *SETTINGS, cwd=tmp_path)
    assert "continuing at step" in done.stdout
    stored = next((tmp_path / "runs/.store/teacher").glob("*/outputs"))
    assert stored.parent.stat().st_ino == inode, "the attempt itself became the entry"
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed
