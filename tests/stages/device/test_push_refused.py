"""Pushes that find no way to the far end, or no far end that could take them: a real sshd on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from frs.errors import RemoteError, RuntimeMissing
from frs.remote import Remote
from pipeline.cli import main
from stages.device.push import push
from tests.stages.device.lab import INFO, LIBRARIES, ROOT, Watched, packed, stub
from tests.stages.device.sshd import ALIAS, LOCKED_OUT, STRANGER, Far, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


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
        ({"bundle_format": None}, RemoteError, "reads bundles of format None"),
    ],
)
def test_a_far_end_that_cannot_take_the_bundle(
    far: Far, run_dir: Path, info: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, info={**INFO, **info}), Watched())


def test_an_answer_without_the_format(far: Far, run_dir: Path) -> None:
    info = {key: value for key, value in INFO.items() if key != "bundle_format"}
    with pytest.raises(RemoteError, match="does not answer as it should"):
        push(Remote(ALIAS), run_dir, packed(b"x"), stub(far, info=info), Watched())


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
