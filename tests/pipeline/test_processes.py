"""What only real processes show: kills, signals, and two at the same work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import locked
from tests.pipeline.worker import STEPS

ROOT = Path(__file__).parents[2]


class Farm:
    """Starts runs as processes and lets them go on step by step."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.go = self.runs / "go"
        self.go.mkdir(parents=True)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.pipeline.worker", "run", name, "--runs-dir", str(self.runs), *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def allow(self, steps: int) -> None:
        for step in range(1, steps + 1):
            (self.go / str(step)).touch()

    def wait_for(self, process: subprocess.Popen[str], text: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text in line:
                return
        assert process.stderr is not None
        pytest.fail(f"it ended without saying {text!r}: {process.stderr.read()}")

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def manifest(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.runs / name / "manifest.json").read_text())
        return document

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.runs / ".store" / "train").iterdir() if path.is_dir())


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    farm = Farm(tmp_path)
    yield farm
    for process in farm.started:
        process.kill()
        process.communicate()


def test_after_a_kill_the_same_command_continues_in_the_same_folder(farm: Farm) -> None:
    farm.allow(2)
    killed = farm.start("one")
    farm.wait_for(killed, "step 2")
    killed.kill()
    killed.wait()
    (partial,) = farm.folders()
    assert partial.endswith(".partial")
    assert farm.manifest("one").items() >= {"name": "one", "running": f".store/train/{partial}", "stages": {}}.items()
    inode = (farm.runs / ".store" / "train" / partial).stat().st_ino

    farm.allow(STEPS)
    code, out, err = farm.finish(farm.start("one"))
    assert (code, err) == (0, "")
    assert "starts (never run; continues an interrupted attempt)" in out
    assert "step 2" not in out
    record = farm.manifest("one")["stages"]["train"]
    assert (record["metrics"], record["continued"]) == ({"first": 2}, True)
    assert farm.folders() == [partial.removesuffix(".partial")]
    entry = farm.runs / ".store" / "train" / farm.folders()[0]
    assert entry.stat().st_ino == inode
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "outputs"]
    assert (farm.runs / "one" / "weights.bin").read_text() == "trained"

    code, out, _ = farm.finish(farm.start("one"))
    assert (code, "nothing to do" in out) == (0, True)


def test_a_forked_child_that_outlives_a_kill_holds_no_lock(farm: Farm) -> None:
    farm.allow(1)
    killed = farm.start("one", WORKER_FORKS="1")
    farm.wait_for(killed, "step 1")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    farm.allow(STEPS)
    code, _, err = farm.finish(farm.start("one"))
    (farm.go / "leave").touch()
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_say_how_to_go_on(farm: Farm, number: signal.Signals, code: int) -> None:
    farm.allow(1)
    process = farm.start("one")
    farm.wait_for(process, "step 1")
    process.send_signal(number)
    returned, out, err = farm.finish(process)
    assert returned == code
    assert "train: stopped after" in out
    assert err.startswith("frs-pipeline: interrupted; the same command continues")
    assert err.count("\n") == 1
    farm.allow(STEPS)
    assert farm.finish(farm.start("one"))[0] == 0
    assert farm.manifest("one")["stages"]["train"]["metrics"] == {"first": 1}


def test_one_run_of_a_name_at_a_time(farm: Farm) -> None:
    farm.allow(1)
    first = farm.start("one")
    farm.wait_for(first, "step 1")
    code, out, err = farm.finish(farm.start("one"))
    assert (code, out) == (4, "")
    assert f"run one is under way in process {first.pid}" in err
    farm.allow(STEPS)
    assert farm.finish(first)[0] == 0


def test_two_runs_at_the_same_work_do_it_once(farm: Farm) -> None:
    farm.allow(1)
    first = farm.start("one")
    farm.wait_for(first, "step 1")
    second = farm.start("two")
    farm.wait_for(second, f"train: process {first.pid} is at this very work; waiting for it")
    farm.allow(STEPS)
    assert farm.finish(first)[0] == 0
    code, out, _ = farm.finish(second)
    assert code == 0
    assert "[1/1] train: made by another process in" in out
    one, two = (farm.manifest(name)["stages"]["train"] for name in ("one", "two"))
    assert (one["reused"], two["reused"]) == (False, True)
    assert one["path"] == two["path"]
    assert len(farm.folders()) == 1
    assert (farm.runs / "two" / "weights.bin").read_text() == "trained"


def test_when_the_first_of_two_is_killed_the_second_continues_its_work(farm: Farm) -> None:
    farm.allow(2)
    first = farm.start("one")
    farm.wait_for(first, "step 2")
    second = farm.start("two")
    farm.wait_for(second, "waiting for it")
    first.kill()
    farm.allow(STEPS)
    assert farm.finish(second)[0] == 0
    assert farm.manifest("two")["stages"]["train"]["metrics"] == {"first": 2}


def test_the_collector_leaves_an_attempt_that_is_under_way(farm: Farm) -> None:
    farm.allow(1)
    process = farm.start("one")
    farm.wait_for(process, "step 1")
    (farm.runs / "one" / "manifest.json").unlink()
    command = [sys.executable, "-m", "pipeline.cli", "gc", "--runs-dir", str(farm.runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "in use  .store/train/" in done.stdout
    assert "0 bytes in 0 folders deleted" in done.stdout
    farm.allow(STEPS)
    assert farm.finish(process)[0] == 0


def test_a_lock_file_deleted_while_one_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys; from pathlib import Path; from pipeline.files import locked\n"
        "with locked(Path(sys.argv[1]), busy=lambda pid: print('held by', pid, flush=True)):\n"
        "    print('mine', Path(sys.argv[1]).read_text(), flush=True)\n"
    )
    with locked(path, busy=lambda _: None):
        command = [sys.executable, "-c", script, str(path)]
        waiter = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == f"held by {os.getpid()}\n"
        path.unlink()
        time.sleep(0.05)  # it must not take the deleted file for the lock, however late it wakes
    assert waiter.communicate(timeout=30)[0] == f"mine {waiter.pid}\n"
