"""Two runs at once, a clock that is set back, a folder that is moved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pipeline.hashing import sealed, unsealed
from tests.faults.conftest import Undisturbed
from tests.faults.lab import STAGES, command, copy, executed, outputs, run, strike, wait_for
from tests.faults.test_kills import check_whole

DAY = 86_400


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("w") as out:
        return subprocess.Popen(command(*arguments), cwd=folder, stdout=out, stderr=subprocess.STDOUT)


def test_a_second_run_of_the_same_name_is_refused_at_once(tmp_path: Path, undisturbed: Undisturbed) -> None:
    log = tmp_path / "first.txt"
    first = start(tmp_path, log, "--until", "teacher")
    wait_for(log, "teacher: starts", first)
    refused = run(tmp_path, "--until", "teacher", code=4)
    assert refused.stderr == (
        f"frs-pipeline: run tiny is under way in process {first.pid}; wait until it ends, or give this one another name "
        "(--set name=...).\n"
    )
    assert first.wait() == 0
    check_whole(tmp_path, undisturbed, until="teacher")


@pytest.mark.campaign
def test_two_runs_of_different_names_share_the_work(tmp_path: Path, undisturbed: Undisturbed) -> None:
    logs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    both = [start(tmp_path, log, "--set", f"name={log.stem}") for log in logs]
    assert [process.wait() for process in both] == [0, 0]
    said = [log.read_text() for log in logs]
    for stage in STAGES[:-1]:
        made = [text.count(f"{stage}: done in") for text in said]
        assert sum(made) == 1, f"{stage} was made {sum(made)} times"
    for name in ("a", "b"):
        found = outputs(tmp_path, name)
        assert [k for k, v in undisturbed.outputs.items() if found[k] != v] == ["report/report.json"], (
            "it has the name in it"
        )


@pytest.mark.campaign
def test_of_two_runs_one_is_killed_and_the_other_goes_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    log = tmp_path / "second.txt"
    first = start(tmp_path, tmp_path / "first.txt", "--set", "name=first", "--until", "student")
    wait_for(tmp_path / "first.txt", "teacher: starts", first)
    second = start(tmp_path, log, "--until", "student")
    wait_for(log, "waiting for it", second)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait() == 0
    check_whole(tmp_path, undisturbed, until="student")


def shift(folder: Path, seconds: float) -> None:
    """Every file is from tomorrow: that is how it looks when the clock was set back by a day."""
    for path in (folder / "runs").rglob("*"):
        now = path.lstat()
        os.utime(path, (now.st_atime + seconds, now.st_mtime + seconds), follow_symlinks=False)
    for path in (*(folder / "runs").rglob("entry.json"), folder / "runs/tiny/manifest.json"):
        document = unsealed(json.loads(path.read_text()))
        for record in document.get("stages", {"": document}).values():
            record["started"] = (datetime.fromisoformat(record["started"]) + timedelta(seconds=seconds)).isoformat()
        path.write_text(json.dumps(sealed(document)))


def test_the_clock_is_set_back_between_two_runs(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = copy(undisturbed.folder, tmp_path / "copy")
    shift(folder, DAY)
    assert executed(run(folder).stdout) == set()
    check_whole(folder, undisturbed)
    assert executed(run(folder, "--set", "report.score=0.2").stdout) == {"report"}


@pytest.mark.campaign
@pytest.mark.parametrize("stage", ["teacher", "export"])
def test_the_clock_is_set_back_after_a_kill(tmp_path: Path, undisturbed: Undisturbed, stage: str) -> None:
    strike(tmp_path, stage, 0.7 * undisturbed.durations[stage], signal.SIGKILL)
    shift(tmp_path, DAY)
    run(tmp_path)
    check_whole(tmp_path, undisturbed)


@pytest.mark.campaign
def test_the_clock_is_set_back_while_it_runs(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Python's clock; nothing of ours asks another one."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(
        "import datetime, time\n"
        "seconds, nanoseconds, began = time.time, time.time_ns, time.monotonic()\n"
        "back = lambda: 86400 if time.monotonic() - began > 4 else 0\n"
        "time.time = lambda: seconds() - back()\n"
        "time.time_ns = lambda: nanoseconds() - back() * 10**9\n"
        "class Datetime(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, zone=None):\n"
        "        return cls.fromtimestamp(time.time(), zone)\n"
        "datetime.datetime = Datetime\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path / "hook"), os.environ.get("PYTHONPATH")]))
    run(tmp_path, env={"PYTHONPATH": path})
    check_whole(tmp_path, undisturbed)
    started = [
        record["started"]
        for record in json.loads((tmp_path / "runs/tiny/manifest.json").read_text())["stages"].values()
    ]
    assert started != sorted(started), "the clock that the run saw went back"
    assert executed(run(tmp_path).stdout) == set()


def test_a_finished_run_that_is_moved_has_nothing_to_do(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = copy(undisturbed.folder, tmp_path / "here")
    folder.rename(tmp_path / "there")
    assert executed(run(tmp_path / "there").stdout) == set()


@pytest.mark.campaign
def test_an_interrupted_run_that_is_moved_continues(tmp_path: Path, undisturbed: Undisturbed) -> None:
    here = tmp_path / "here"
    here.mkdir()
    strike(here, "student", 0.7 * undisturbed.durations["student"], signal.SIGKILL)
    here.rename(tmp_path / "there")
    done = run(tmp_path / "there")
    assert "continuing at step" in done.stdout
    check_whole(tmp_path / "there", undisturbed)
