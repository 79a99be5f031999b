"""A push to a real sshd on loopback, through everything that may happen to it; the far end measures only in the last test."""

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
from click.testing import CliRunner

from frs.errors import RemoteError, RuntimeMissing
from frs.remote import Remote
from pipeline.cli import main
from stages.device.push import push
from tests.stages.device.lab import INFO, LIBRARIES, PAGE, ROOT, Watched, packed, result, stub
from tests.stages.device.sshd import ALIAS, LOCKED_OUT, STRANGER, Far, missing, running

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
BUNDLE = random.Random(0).randbytes(20_000_000)
SMALL = random.Random(1).randbytes(1_000_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Far]:
    with running() as far, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{far.bin}:{os.environ['PATH']}")
        yield far


@pytest.fixture
def far(server: Far) -> Iterator[Far]:
    """A far end on which nothing is yet."""
    yield server
    shutil.rmtree(server.home / "cache", ignore_errors=True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "student.onnx").write_text("an artifact")
    return tmp_path


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


def test_a_far_end_without_a_runtime(far: Far, run_dir: Path) -> None:
    """The real `device info`, where both libraries are found and cannot be loaded."""
    (far.home / "lacks").mkdir()
    for name in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        (far.home / "lacks" / f"{name}.py").write_text(
            "raise ImportError('libcudart.so.12: cannot open shared object file')"
        )
    real = f'#!/bin/sh\nPYTHONPATH={far.home}/lacks:{ROOT} exec {sys.executable} -m pipeline.cli "$@"\n'
    with pytest.raises(
        RuntimeMissing, match=r"neither ONNX Runtime nor TensorRT \(onnxruntime: ImportError: libcudart"
    ):
        push(Remote(ALIAS), run_dir, packed(b"x"), str(far.script("real", real)), Watched())
    assert not (run_dir / "devices").exists()


@pytest.mark.parametrize(
    ("info", "error", "said"),
    [
        (
            {"libraries": {**LIBRARIES, "pycocotools": {"version": None, "missing": "no"}}},
            RuntimeMissing,
            "cannot import pyc",
        ),
        (
            {"bundle_format": 2},
            RemoteError,
            "reads bundles of format 2, this one .* writes 1; install the same version",
        ),
        ({"libraries": {}}, RemoteError, r"`.*stub.py device info` does not answer as it should \(exit 0\)"),
        ({"device": ["x"]}, RemoteError, "does not answer as it should"),
    ],
)
def test_a_far_end_that_cannot_take_the_bundle(
    far: Far, run_dir: Path, info: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, info={**INFO, **info}), Watched())


def test_another_version_that_knows_the_format_will_do(far: Far, run_dir: Path) -> None:
    screen = Watched()
    push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, info={**INFO, "frs_pipeline": "9.9"}), screen)
    assert "frs-pipeline 9.9" in screen.text
    assert "both know bundles of format 1" in screen.text


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo \"Error: No such command 'info'.\" >&2; exit 2", "knows no `device info`; install version"),
        (
            "echo \"No module named 'click'\" >&2; exit 1",
            r"does not answer as it should \(exit 1\): No module named 'click'",
        ),
    ],
)
def test_a_frs_pipeline_that_does_not_work_there(far: Far, run_dir: Path, script: str, said: str) -> None:
    command = far.script("broken", f"#!/bin/sh\n{script}\n")
    with pytest.raises(RemoteError, match=said):
        push(Remote(ALIAS), run_dir, packed(b"x"), str(command), Watched())


@pytest.mark.parametrize(
    "command", ["frs-pipeline-nowhere", "~/nowhere/frs-pipeline", "$(touch pwned)", "a; touch pwned"]
)
def test_no_frs_pipeline_there(far: Far, run_dir: Path, command: str) -> None:
    with pytest.raises(RemoteError, match=r"there is no command .*over ssh PATH is shorter"):
        push(Remote(ALIAS), run_dir, packed(b"x"), command, Watched())
    assert not (far.home / "pwned").exists()


def test_a_command_in_the_home_folder(far: Far, run_dir: Path) -> None:
    """The far end's home, which only its own shell knows."""
    _, home = Remote(ALIAS).ask("cd; pwd")
    if Path(home.strip()) != far.home:
        pytest.skip("the user's own home folder is left alone")
    stub(far)
    push(Remote(ALIAS), run_dir, packed(b"x"), "~/stub.py", Watched())


def test_a_host_whose_key_is_not_known(far: Far, run_dir: Path) -> None:
    with pytest.raises(
        RemoteError, match="stranger: its host key is not known here; connect once by hand with `ssh stranger`"
    ):
        push(Remote(STRANGER), run_dir, packed(b"x"), stub(far), Watched())


def test_a_host_whose_key_has_changed(far: Far, run_dir: Path, tmp_path: Path) -> None:
    known = far.bin.parent / "known_hosts"
    right = known.read_text()
    other = (far.bin.parent / "other_key.pub").read_text().split()[1]
    known.write_text(f"[127.0.0.1]:{far.port} ssh-ed25519 {other}\n")
    try:
        with pytest.raises(RemoteError, match=r"its host key is not the one that is known: .* another one answers"):
            push(Remote(ALIAS), run_dir, packed(b"x"), stub(far), Watched())
    finally:
        known.write_text(right)


def test_a_key_that_opens_nothing(far: Far, run_dir: Path) -> None:
    with pytest.raises(RemoteError, match=r"Permission denied \(publickey\).*`ssh-copy-id locked-out`"):
        push(Remote(LOCKED_OUT), run_dir, packed(b"x"), stub(far), Watched())
    screen = Watched()
    push(Remote(LOCKED_OUT, identity=far.bin.parent / "user_key"), run_dir, packed(b"x"), stub(far), screen)
    assert "device run" in screen.text


@pytest.mark.parametrize(
    ("remote", "said"),
    [
        (Remote("nowhere.invalid"), "Could not resolve hostname nowhere.invalid.*; correct --host"),
        (Remote(ALIAS, port=1), "Connection refused"),
    ],
)
def test_a_host_that_does_not_answer(far: Far, run_dir: Path, remote: Remote, said: str) -> None:
    with pytest.raises(RemoteError, match=said):
        push(remote, run_dir, packed(b"x"), stub(far), Watched())


def test_no_ssh_here(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run_dir))
    with pytest.raises(RuntimeMissing, match="ssh is not installed here; install OpenSSH's client"):
        push(Remote(ALIAS), run_dir, packed(b"x"), "frs-pipeline", Watched())


@pytest.mark.parametrize("host", ["-oProxyCommand=touch pwned", "a;touch pwned", "a\ntouch pwned", "$(touch pwned)"])
def test_a_hostile_host_name_ends_at_the_command_line(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["device", "push", "quickstart", f"--host={host}"])
    assert done.exit_code == 2
    assert "is no host" in done.output
    assert list(tmp_path.iterdir()) == []


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
