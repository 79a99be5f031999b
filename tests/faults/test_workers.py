"""Processes that load images: one dies, or has no memory to hand its images over in."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.lab import command, run, wait_for_checkpoint

# Enough batches that a worker is at work for a while; two workers change nothing in what is learnt.
LONG = ("--set", "data.limit=40", "--set", "teacher.train.epochs=10", "--until", "teacher")
WORKERS = (*LONG, "--set", "teacher.train.workers=2")
WEIGHTS = "runs/tiny/teacher.safetensors"


@pytest.fixture(scope="module")
def undisturbed_weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("alone")
    run(folder, *LONG)
    return (folder / WEIGHTS).read_bytes()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def start(folder: Path) -> subprocess.Popen[str]:
    log = folder / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            command(*WORKERS), cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    wait_for_checkpoint(folder, "teacher", process)
    return process


def test_a_worker_that_dies_is_an_error_and_the_same_command_continues(
    tmp_path: Path, undisturbed_weights: bytes
) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for child in children(process.pid)[:1]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "stage teacher: a process that loads images has died (" in said
    assert said.endswith("if memory ran out, lower train.workers; the same command continues\n")
    assert "continuing at step" in run(tmp_path, *LONG).stdout, "as advised: with fewer workers"
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed_weights


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_answered_once(
    tmp_path: Path, undisturbed_weights: bytes, how: signal.Signals
) -> None:
    process = start(tmp_path)
    os.killpg(process.pid, how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + how, said
    assert said.count("frs-pipeline: interrupted; the same command continues") == 1
    assert "Traceback" not in said
    assert "continuing at step" in run(tmp_path, *WORKERS).stdout
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed_weights


def test_a_full_shared_memory_is_an_error_that_names_it(tmp_path: Path, undisturbed_weights: bytes) -> None:
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm cannot be mounted here")
    failed = subprocess.run([*small, *command(*WORKERS)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.endswith(
        "frs-pipeline: stage preflight: the shared memory (/dev/shm) through which train.workers hand over their images is "
        "full; lower train.workers (0 needs none), or give the container more (--shm-size=2g); the same command continues\n"
    )
    assert "Traceback" not in failed.stderr
    run(tmp_path, *WORKERS)
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed_weights
