"""A push to a real sshd on loopback, and what may befall it; the far end measures only in the last test."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from frs.errors import RemoteError
from frs.remote import Remote
from stages.device.push import push
from tests.stages.device.lab import INFO, PAGE, ROOT, Watched, packed, result, stub
from tests.stages.device.sshd import ALIAS, Far, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
BUNDLE = random.Random(0).randbytes(20_000_000)
SMALL = random.Random(1).randbytes(1_000_000)


def cut(far: Far) -> None:
    """The connection dies, as a cable that is pulled."""
    sessions = far.sessions()
    assert sessions
    for process in sessions:
        os.kill(process, signal.SIGKILL)


def folder(far: Far, content: bytes = BUNDLE) -> Path:
    return far.home / "cache" / "frs-pipeline" / "push" / hashlib.sha256(content).hexdigest()[:16]


def gone(process: int) -> bool:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_results_come_into_the_run_and_a_second_push_sends_nothing(far: Far, run_dir: Path) -> None:
    command = stub(far, "say('step 1'); say('step 2')")
    before = files(run_dir)
    screen = Watched()
    assert push(Remote(ALIAS), run_dir, packed(BUNDLE), command, screen) == ["gain"]
    assert screen.text.splitlines() == [
        f"board: A board, frs-pipeline {INFO['frs_pipeline']}, onnxruntime 1.32.0",
        "bundle: 20000000 bytes",
        "board: the bundle is there (20.0 MB)",
        "board: device run",
        "  step 1",
        "  step 2",
    ]
    assert result(run_dir, "board")["bundle_sha256"] == hashlib.sha256(BUNDLE).hexdigest()
    after = files(run_dir)
    assert {path: content for path, content in after.items() if "/devices/" not in path} == before
    assert [path.name for path in (run_dir / "devices").iterdir() if path.is_dir()] == ["board"]
    assert (run_dir / "devices" / "board" / "device.html").read_text() == PAGE
    again = Watched()
    push(Remote(ALIAS), run_dir, packed(BUNDLE), command, again)
    assert "the bundle is there already" in again.text


def test_a_page_that_could_run_scripts_stays_where_it_is(far: Far, run_dir: Path) -> None:
    screen = Watched()
    late = f"lambda: (results / 'device.html').write_text('<script>1</script>' + {PAGE!r})"
    push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, f"import atexit; atexit.register({late})"), screen)
    assert "its device.html is not as this version's are and stays there" in screen.text
    assert [path.name for path in (run_dir / "devices" / "board").iterdir()] == ["device.json"]


def test_half_a_letter_from_the_far_end_is_kept_as_it_came(far: Far, run_dir: Path) -> None:
    push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, r"finish(notes=['\ud800'])"), Watched())
    assert result(run_dir, "board")["notes"] == ["\ud800"]


def test_what_is_on_the_device_is_for_its_user_alone(far: Far, run_dir: Path) -> None:
    """The bundle holds the user's images."""
    push(Remote(ALIAS), run_dir, packed(b"x"), stub(far), Watched())
    assert folder(far, b"x").stat().st_mode & 0o077 == 0
    assert (folder(far, b"x") / "bundle.tar").stat().st_mode & 0o077 == 0


def test_a_connection_cut_in_the_middle_of_the_run(far: Far, run_dir: Path) -> None:
    half = "begun = results / 'begun'; again = begun.exists(); begun.touch(); say('half'); again or time.sleep(60)"
    command = stub(far, half)
    screen = Watched(lambda line: cut(far) if "half" in line else None)
    with pytest.raises(RemoteError, match=r"board: the connection failed \(.*give the same command again"):
        push(Remote(ALIAS), run_dir, packed(BUNDLE), command, screen)
    assert gone(int((far.home / "pid").read_text())), "it would disturb the next measurement"
    assert not (run_dir / "devices" / "board").exists()
    again = Watched()
    push(Remote(ALIAS), run_dir, packed(BUNDLE), command, again)
    assert "the bundle is there already" in again.text
    assert result(run_dir, "board")


def test_an_interruption_here_ends_the_far_end_too(far: Far, run_dir: Path) -> None:
    def interrupt(line: str) -> None:
        if "half" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, "say('half'); time.sleep(60)"), Watched(interrupt))
    assert gone(int((far.home / "pid").read_text()))


def test_a_kill_here_ends_the_far_end_too(far: Far, run_dir: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from frs.remote import Remote; from stages.device.push import push\n"
        "from tests.stages.device.lab import Watched, packed\n"
        "push(Remote('board'), Path(sys.argv[1]), packed(b'x'), sys.argv[2], Watched(lambda line: print(line, flush=True)))"
    )
    command = [sys.executable, "-c", script, str(run_dir), stub(far, "say('half'); time.sleep(60)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as here:
        assert here.stdout is not None
        assert any("half" in line for line in here.stdout)
        here.kill()
    assert gone(int((far.home / "pid").read_text()))


def test_a_connection_cut_in_the_middle_of_the_upload(far: Far, run_dir: Path) -> None:
    struck: list[float] = []

    def moved(done: float) -> None:
        if done > len(BUNDLE) / 2 and not struck:
            struck.append(done)
            cut(far)

    with pytest.raises(RemoteError, match="board: the connection failed"):
        push(Remote(ALIAS), run_dir, packed(BUNDLE), stub(far), Watched(moved=moved))
    there = (folder(far) / "bundle.part").stat().st_size
    assert 0 < there < len(BUNDLE)
    moves: list[float] = []
    again = Watched(moved=moves.append)
    push(Remote(ALIAS), run_dir, packed(BUNDLE), stub(far), again)
    assert f"board: {there / 1e6:.1f} MB of it are there already" in again.text
    assert moves[0] == there + min(1 << 16, len(BUNDLE) - there)
    assert (folder(far) / "bundle.tar").read_bytes() == BUNDLE


def test_half_a_bundle_that_is_another_is_not_completed_twice(far: Far, run_dir: Path) -> None:
    push(Remote(ALIAS), run_dir, packed(SMALL), stub(far), Watched())
    (folder(far, SMALL) / "bundle.tar").unlink()
    (folder(far, SMALL) / "bundle.part").write_bytes(b"another")
    (folder(far, SMALL) / "bundle.part").chmod(0o666)
    with pytest.raises(RemoteError, match="came there damaged and was deleted"):
        push(Remote(ALIAS), run_dir, packed(SMALL), stub(far), Watched())
    push(Remote(ALIAS), run_dir, packed(SMALL), stub(far), Watched())


def test_a_bundle_that_was_damaged_on_the_device_is_sent_again(far: Far, run_dir: Path) -> None:
    push(Remote(ALIAS), run_dir, packed(SMALL), stub(far), Watched())
    with (folder(far, SMALL) / "bundle.tar").open("r+b") as file:
        file.write(bytes(100))
    screen = Watched()
    push(Remote(ALIAS), run_dir, packed(SMALL), stub(far), screen)
    assert "the bundle is there (1.0 MB)" in screen.text


@pytest.fixture
def small_disk(far: Far) -> Iterator[Path]:
    """50 MB, mounted where pushes go."""
    place = far.home / "cache" / "frs-pipeline" / "push"
    subprocess.run([*far.become, "mkdir", "-p", place], check=True)
    options = f"size=50m,uid={place.stat().st_uid},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    free = shutil.disk_usage(disk).free - leave
    with suppress(OSError), (disk / "filler").open("wb") as file:  # somebody else may be faster
        file.write(bytes(free))


def test_a_disk_that_has_too_little_room_is_seen_before_the_upload(far: Far, run_dir: Path, small_disk: Path) -> None:
    fill(small_disk, leave=30_000_000)
    moves: list[float] = []
    with pytest.raises(RemoteError, match=r"has 30\.\d MB free; the bundle takes 20\.0 MB, and as much again unpacked"):
        push(Remote(ALIAS), run_dir, packed(BUNDLE), stub(far), Watched(moved=moves.append))
    assert moves == []


def test_a_disk_that_fills_up_during_the_upload(far: Far, run_dir: Path, small_disk: Path) -> None:
    def moved(done: float) -> None:
        if done > 5_000_000 and not (small_disk / "filler").exists():
            fill(small_disk)

    with pytest.raises(RemoteError, match=r"its disk is full \(.*No space left on device\); make room there"):
        push(Remote(ALIAS), run_dir, packed(BUNDLE), stub(far), Watched(moved=moved))
    (small_disk / "filler").unlink()
    screen = Watched()
    push(Remote(ALIAS), run_dir, packed(BUNDLE), stub(far), screen)
    assert "of it are there already" in screen.text


def test_a_disk_that_fills_up_during_the_run(far: Far, run_dir: Path, small_disk: Path) -> None:
    command = stub(far, "(results / 'student.plan').write_bytes(bytes(60_000_000))")
    with pytest.raises(RemoteError, match=r"its disk is full \(OSError.*No space left on device.*\); make room there"):
        push(Remote(ALIAS), run_dir, packed(BUNDLE), command, Watched())
    assert not (run_dir / "devices" / "board").exists()


def test_a_folder_that_cannot_be_made(far: Far, run_dir: Path) -> None:
    (far.home / "cache").write_text("a file")
    try:
        with pytest.raises(RemoteError, match=r"~/\.cache/frs-pipeline/push cannot be used there \(mkdir: "):
            push(Remote(ALIAS), run_dir, packed(b"x"), stub(far), Watched())
    finally:
        (far.home / "cache").unlink()


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("say('why'); sys.exit(1)", r"device run failed \(exit 1\); the run here is as it was.*device run bundle(?s:.*)  why"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "device run was killed there, most often because memory ran out"),
        ("sys.exit(143)", "device run was ended there"),
        ("sys.exit(4)", "under way there already"),
        ("sys.exit(0)", r"results/device.json cannot be read there"),
        ("finish(schema=2)", "its device.json is damaged, or was written by another version"),
        ("finish(bundle_sha256='f' * 64)", "its device.json is of another bundle"),
        ("finish(profiles=float('nan'))", "NaN is no number of JSON's"),
        ("(results / 'device.json').write_text('[' * 100_000); sys.exit()", "its device.json is damaged"),
        ("(results / 'device.json').write_text('x' * (1 + (1 << 24))); sys.exit()", "its answer has more than"),
    ],
)  # fmt: skip
def test_a_run_that_fails_leaves_the_results_that_were_there(far: Far, run_dir: Path, run: str, said: str) -> None:
    before = run_dir / "devices" / "board" / "device.json"
    before.parent.mkdir(parents=True)
    before.write_text("the last ones")
    with pytest.raises(Exception, match=said):
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, run), Watched())
    assert before.read_text() == "the last ones"
    assert [path.name for path in before.parent.parent.iterdir() if path.is_dir()] == ["board"]


def test_what_the_far_end_prints_cannot_steer_the_terminal(far: Far, run_dir: Path) -> None:
    screen = Watched()
    push(
        Remote(ALIAS),
        run_dir,
        packed(b"x"),
        stub(far, r"say('\x1b[2J' + 'a' * 10_000); sys.stdout.buffer.write(b'\xff\n')"),
        screen,
    )
    assert "\x1b" not in screen.text
    assert r"\x1b[2Jaaa" in screen.text
    assert max(len(line) for line in screen.text.splitlines()) < 5000


def test_a_login_that_greets(far: Far, run_dir: Path) -> None:
    if not far.become:
        pytest.skip("the user's own ~/.ssh/rc is left alone")
    rc = far.home / ".ssh" / "rc"
    rc.parent.mkdir()
    rc.write_text('echo "Welcome {"; echo "disk full"\n')
    try:
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far), Watched())
    finally:
        shutil.rmtree(rc.parent)


def test_the_far_end_hears_that_somebody_is_there(far: Far, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends it, a sign of life now and then keeps it."""
    patient = stub(far, "end_unattended(silence=1); time.sleep(2.5)")
    monkeypatch.setattr("frs.remote.HEARTBEAT", 0.2)
    push(Remote(ALIAS), run_dir, packed(b"x"), patient, Watched())
    monkeypatch.setattr("frs.remote.HEARTBEAT", 60)
    with pytest.raises(RemoteError, match="device run was ended there"):
        push(Remote(ALIAS), run_dir, packed(b"x"), patient, Watched())


def test_nothing_stubbed_interrupted_and_continued(far: Far, run_dir: Path, small: Path) -> None:
    """The far end builds engines, scores and measures; Ctrl-C here, and the same again."""

    def pack(path: Path) -> str:
        shutil.copy(small, path)
        return "small"

    def interrupt(line: str) -> None:
        if "teacher.onnx in ONNX Runtime" in line:
            raise KeyboardInterrupt

    real = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pipeline.cli "$@"\n'
    command = str(far.script("frs-pipeline", real))
    with pytest.raises(KeyboardInterrupt):
        push(Remote(ALIAS), run_dir, pack, command, Watched(interrupt))
    screen = Watched()
    push(Remote(ALIAS), run_dir, pack, command, screen)
    assert "board: the bundle is there already" in screen.text
    found = result(run_dir, "board")
    assert found["bundle_sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    assert [(row["model"], row["runtime"]) for row in found["profiles"]] == [
        ("teacher", "onnxruntime"),
        ("student", "onnxruntime"),
    ]
    assert (run_dir / "devices" / "board" / "device.html").is_file()
