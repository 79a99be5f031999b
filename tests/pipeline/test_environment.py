"""--locked, against the packages that are installed here; and what of the environment a manifest holds."""

from __future__ import annotations

import json
import re
import sysconfig
from pathlib import Path

import pytest

from pipeline.environment import check_locked, lock_file, packages, read_lock
from pipeline.errors import NotLocked
from tests.stages.conftest import SMALL, frs_pipeline


def lock_of(folder: Path, pins: dict[str, str]) -> Path:
    path = folder / "lock.txt"
    path.write_text(
        "# made by hand\n" + "".join(f"{name}=={version} \\\n    --hash=sha256:0\n" for name, version in pins.items())
    )
    return path


@pytest.fixture
def installed() -> dict[str, str]:
    return {name: version for name, version in packages().items() if name != "frs-pipeline"}


def test_what_is_installed_passes_its_own_lock(tmp_path: Path, installed: dict[str, str]) -> None:
    assert {"numpy", "pydantic", "torch"} <= set(installed)
    check_locked(lock_of(tmp_path, installed))


def test_names_are_compared_as_the_index_does(tmp_path: Path, installed: dict[str, str]) -> None:
    pins = {name.replace("-", "_").upper(): version for name, version in installed.items()}
    check_locked(lock_of(tmp_path, pins))


def test_another_version_a_missing_and_a_further_package_are_named(tmp_path: Path, installed: dict[str, str]) -> None:
    pins = {**installed, "numpy": "1.0", "not-there": "3.2"}
    del pins["rich"]
    with pytest.raises(NotLocked) as caught:
        check_locked(lock_of(tmp_path, pins))
    message = str(caught.value)
    assert f"numpy {installed['numpy']}, locked 1.0" in message
    assert "not-there is missing, locked 3.2" in message
    assert f"rich {installed['rich']}, not locked" in message
    assert f"pip install --require-hashes -r {tmp_path / 'lock.txt'}" in message


def test_pip_itself_need_not_be_locked(tmp_path: Path, installed: dict[str, str]) -> None:
    check_locked(lock_of(tmp_path, {name: version for name, version in installed.items() if name != "pip"}))


def test_a_lock_that_is_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRS_LOCK", str(tmp_path / "none.txt"))
    with pytest.raises(NotLocked, match=r"FRS_LOCK=.*none\.txt: there is no such file"):
        lock_file()
    for content in (b"numpy>=1.26\n", b"\x80\xff\x00"):
        (tmp_path / "none.txt").write_bytes(content)
        with pytest.raises(NotLocked, match="pins no package"):
            read_lock(lock_file())


def test_what_a_broken_installation_left_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    whole = tmp_path / "Whole_Thing-2.0.dist-info"
    whole.mkdir()
    (whole / "METADATA").write_text("Metadata-Version: 2.4\nName: Whole_Thing\nVersion: 2.0\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert packages.__wrapped__() == {"whole-thing": "2.0"}


def test_a_run_that_is_not_locked_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRS_LOCK", str(lock_of(tmp_path, {"numpy": "1.0"})))
    done = frs_pipeline("run", SMALL, "--locked", "--until", "data", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert re.match(r"frs-pipeline: what is installed is not what .*lock\.txt says: ", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_manifest_holds_image_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]
) -> None:
    monkeypatch.setenv("FRS_LOCK", str(lock_of(tmp_path, installed)))
    monkeypatch.setenv("FRS_IMAGE", "example/frs@sha256:" + 64 * "a")
    frs_pipeline("run", SMALL, "--locked", "--until", "data", cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs" / "small" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["image"] == "example/frs@sha256:" + 64 * "a"
    assert manifest["packages"] == packages()
