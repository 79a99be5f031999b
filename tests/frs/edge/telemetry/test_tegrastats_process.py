"""A `tegrastats` on PATH that replays recorded lines, and ones that misbehave, as real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from frs.edge.telemetry import Sampler, process, sampler
from frs.edge.telemetry.process import TegrastatsSampler
from frs.edge.telemetry.sample import FIELDS
from tests.frs.edge.telemetry.lines import AGX_ORIN, ORIN_NANO, REAL

PATIENCE_S = 60

HEADER = f"""#!{sys.executable} -S
import os, signal, sys, time
from pathlib import Path
folder = Path(__file__).parent
LINES = {REAL!r}
(folder / "pid").write_text(str(os.getpid()))
assert sys.argv[1] == "--interval"
interval = int(sys.argv[2]) / 1000
def say(text):
    print(text, end="", flush=True)
"""
REPLAY = """
while True:
    for line in LINES:
        say(line)
        time.sleep(interval)
"""


class Board:
    """A folder with a `tegrastats` in it, first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self, body: str, *, root: Path | None = None, interval_s: float = 0.02) -> Sampler:
        program = self.folder / "tegrastats"
        program.write_text(HEADER + body)
        program.chmod(0o755)
        return sampler(interval_s, root or self.folder)

    @property
    def pid(self) -> int:
        path = self.folder / "pid"
        until(lambda: path.exists() and path.read_text() != "")
        return int(path.read_text())


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    yield Board(tmp_path)
    if (tmp_path / "pid").exists():  # a test that failed may have left it
        with suppress(ProcessLookupError):
            os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def until(holds: Callable[[], bool]) -> None:
    """Waits, long enough for any machine."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody waited for has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def empty(group: int) -> bool:
    """Whether no process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_recorded_lines_at_their_rate(board: Board) -> None:
    before = time.perf_counter_ns()
    with board.runs(REPLAY, interval_s=0.1) as telemetry:
        until(lambda: len(telemetry.samples()) >= 4)
        assert telemetry.missing == {
            "throttled": "no cooling device that slows a clock and no over-current counter can be read in /sys"
        }
    after = time.perf_counter_ns()
    samples = telemetry.samples()
    assert telemetry.source == "tegrastats"
    assert samples[0].power_mw["VDD_IN"] == 5263
    assert {sample.memory_used_mb for sample in samples} <= {n * 1.048576 for n in (2639, 3595, 20642)}
    times = [before, *(sample.time_ns for sample in samples), after]
    assert times == sorted(times)
    assert gone(board.pid)
    assert telemetry.missing.keys() == {"throttled"}  # the end was ours
    telemetry.samples().clear()
    assert telemetry.samples() == samples


def test_the_interval_is_passed_on(board: Board) -> None:
    with board.runs("(folder / 'interval').write_text(str(interval))" + REPLAY, interval_s=0.25):
        until(lambda: (board.folder / "interval").exists() and (board.folder / "interval").read_text() == "0.25")


def test_throttling_is_read_with_each_line(board: Board, tmp_path: Path) -> None:
    device = tmp_path / "root/sys/class/thermal/cooling_device0"
    device.mkdir(parents=True)
    (device / "type").write_text("cpufreq-cpu0\n")
    (device / "cur_state").write_text("0\n")
    with board.runs(REPLAY, root=tmp_path / "root") as telemetry:
        until(lambda: len(telemetry.samples()) >= 1)
        (device / "cur_state").write_text("3\n")
        until(lambda: telemetry.samples()[-1].throttled is True)
        assert telemetry.missing == {}
    assert telemetry.samples()[0].throttled is False


def test_one_that_dies(board: Board) -> None:
    with board.runs("say(LINES[0]); sys.stderr.write('no sensor'); sys.exit(7)") as telemetry:
        until(lambda: telemetry.missing.get("power_mw") == "tegrastats ended with status 7 after 1 samples")
        assert len(telemetry.samples()) == 1
    assert telemetry.missing == dict.fromkeys(FIELDS, "tegrastats ended with status 7 after 1 samples")


def test_one_that_is_killed(board: Board) -> None:
    with board.runs(REPLAY) as telemetry:
        until(lambda: bool(telemetry.samples()))
        os.kill(board.pid, signal.SIGKILL)
        until(lambda: "was ended by signal 9 after" in telemetry.missing.get("cpu_load", ""))


def test_one_that_complains(board: Board) -> None:
    with board.runs("sys.stderr.write('tegrastats: permission denied\\n'); sys.exit(1)") as telemetry:
        until(lambda: "ended" in telemetry.missing.get("power_mw", ""))
    why = "tegrastats ended with status 1 after 0 samples: tegrastats: permission denied"
    assert telemetry.missing == dict.fromkeys(FIELDS, why)
    assert telemetry.samples() == []


def test_one_that_says_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SILENCE_S", 0.3)
    with board.runs("time.sleep(3600)") as telemetry:
        until(lambda: "tegrastats printed nothing for" in telemetry.missing.get("power_mw", ""))
    assert set(telemetry.missing) == set(FIELDS)
    assert gone(board.pid)


def test_one_that_falls_silent(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SILENCE_S", 0.3)
    with board.runs("say(LINES[0])\ntime.sleep(3600)") as telemetry:
        until(lambda: telemetry.missing.get("power_mw", "").endswith("s after 1 samples"))
        assert len(telemetry.samples()) == 1


def test_one_that_speaks_another_language(board: Board) -> None:
    with board.runs("while True: say('RAM: viel\\n'); time.sleep(interval)") as telemetry:
        until(lambda: telemetry.missing.get("power_mw") == "tegrastats prints lines that are not understood: RAM: viel")


def test_one_that_floods_is_thinned_out(board: Board) -> None:
    with board.runs("while True: say(LINES[0] * 100)", interval_s=0.2) as telemetry:
        assert isinstance(telemetry, TegrastatsSampler)
        until(lambda: telemetry._lines > 5000 and len(telemetry.samples()) > 2)
    times = [sample.time_ns for sample in telemetry.samples()]
    assert all(later - earlier >= 50_000_000 for earlier, later in pairwise(times))
    assert gone(board.pid)


def test_one_that_never_breaks_its_line(board: Board) -> None:
    with board.runs("while True: say('RAM 1/2MB ' * 100)") as telemetry:
        assert isinstance(telemetry, TegrastatsSampler)
        until(lambda: telemetry._lines > 20)
        assert len(telemetry._last_line) == 65_536
        assert telemetry.samples() == []


@pytest.mark.parametrize("stubborn", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"])
def test_nothing_is_left_behind(board: Board, monkeypatch: pytest.MonkeyPatch, stubborn: str) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.3)
    start = "import subprocess; child = subprocess.Popen(['sleep', '3600']); (folder / 'child').write_text(str(child.pid))\n"
    with board.runs(stubborn + start + REPLAY) as telemetry:
        until(lambda: bool(telemetry.samples()))
    assert gone(board.pid)
    until(lambda: gone(int((board.folder / "child").read_text())))


def test_what_a_dead_one_started_is_ended_too(board: Board) -> None:
    with board.runs("import subprocess; subprocess.Popen(['sleep', '3600'])") as telemetry:
        until(lambda: "ended with status 0" in telemetry.missing.get("power_mw", ""))
        group = board.pid
    until(lambda: empty(group))


def test_an_error_in_what_is_measured_ends_it_too(board: Board) -> None:
    telemetry = board.runs(REPLAY)

    def measure() -> None:
        with telemetry:
            until(lambda: bool(telemetry.samples()))
            raise RuntimeError("the measurement")

    with pytest.raises(RuntimeError, match="the measurement"):
        measure()
    assert gone(board.pid)


OURSELVES = """
import sys, time
from frs.edge.telemetry import sampler
with sampler(0.02) as telemetry:
    while not telemetry.samples():
        time.sleep(0.01)
    print("sampling", flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("with_setpriv", "body"),
    [
        pytest.param(
            True,
            "say(LINES[0]); time.sleep(3600)",
            marks=pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux) here"),
        ),
        (False, "while True: say(LINES[0]); time.sleep(interval)"),
    ],
    ids=["silent", "without setpriv"],
)
def test_it_does_not_outlive_us(board: Board, with_setpriv: bool, body: str) -> None:
    board.runs(body)
    path = os.environ["PATH"] if with_setpriv else str(board.folder)
    ours = subprocess.Popen([sys.executable, "-c", OURSELVES], stdout=subprocess.PIPE, env={**os.environ, "PATH": path})
    assert ours.stdout is not None
    assert ours.stdout.readline() == b"sampling\n"
    assert not gone(board.pid)
    ours.kill()
    ours.wait()
    ours.stdout.close()
    until(lambda: gone(board.pid))


@pytest.mark.parametrize("with_setpriv", [True, False])
def test_one_that_cannot_be_run(board: Board, monkeypatch: pytest.MonkeyPatch, with_setpriv: bool) -> None:
    if not with_setpriv:
        monkeypatch.setenv("PATH", str(board.folder))
    telemetry = board.runs("")
    (board.folder / "tegrastats").unlink()
    with telemetry:
        until(lambda: "No such file" in telemetry.missing.get("power_mw", ""))
    assert set(telemetry.missing) == set(FIELDS)
    assert telemetry.samples() == []


def test_lines_cut_at_the_end_of_the_stream(board: Board) -> None:
    with board.runs(f"say({AGX_ORIN!r} + '\\n'); time.sleep(3 * interval); say({ORIN_NANO!r}[:-3])") as telemetry:
        until(lambda: "ended" in telemetry.missing.get("power_mw", ""))
    assert telemetry.samples()[-1].power_mw.get("VDD_SOC") is None
