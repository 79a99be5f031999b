"""Wheel and source archive: the same bytes from any checkout, nothing in them but the three packages, and they install."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.environment import read_lock

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "frs")
BESIDES = {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "PKG-INFO", ".gitignore"}
STRAY = ("frs/__pycache__/left.cpython-311.pyc", "frs/notes.txt", "stages/weights.safetensors", "pipeline/.env")
BUILD = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1])); print(b.build_sdist(sys.argv[1]))"


def tracked(*folders: str) -> set[str]:
    """The files that git knows and that are there."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *folders]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.rstrip("\0").split("\0") if (ROOT / name).exists()}


def built(folder: Path, umask: int, mtime: int) -> dict[str, Path]:
    """Archives by kind, from a checkout with its own permissions and times."""
    source = folder / "checkout"
    for name in tracked():
        copied = source / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copied)
        copied.chmod(0o666 & ~umask)
        os.utime(copied, (mtime, mtime))
    for name in STRAY:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"left")
    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, env=environment)
    wheel, archive = done.stdout.split()[-2:]
    return {"wheel": folder / wheel, "sdist": folder / archive}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    return [
        built(tmp_path_factory.mktemp("one"), 0o022, 1_600_000_000),
        built(tmp_path_factory.mktemp("two"), 0o077, 1_700_000_000),
    ]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_two_checkouts_give_the_same_bytes(archives: list[dict[str, Path]], kind: str) -> None:
    first, second = (hashlib.sha256(each[kind].read_bytes()).hexdigest() for each in archives)
    assert first == second


def test_the_wheel_has_the_packages_and_their_data_alone(archives: list[dict[str, Path]]) -> None:
    with zipfile.ZipFile(archives[0]["wheel"]) as wheel:
        names = set(wheel.namelist())
    about = {name for name in names if name.startswith(f"frs_pipeline-{__version__}.dist-info/")}
    assert names - about == tracked(*PACKAGES)
    assert "stages/report/templates/report.html" in names


def test_the_source_archive_has_no_more(archives: list[dict[str, Path]]) -> None:
    with tarfile.open(archives[0]["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - BESIDES == tracked(*PACKAGES)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_into_an_empty_environment(archives: list[dict[str, Path]], kind: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
    options = ["--constraint", str(pinned(tmp_path / "constraints.txt"))]
    if kind == "sdist":
        subprocess.run([*pip, "--require-hashes", "--requirement", str(ROOT / "locks/build.txt")], check=True)
        options.append("--no-build-isolation")
    subprocess.run([*pip, *options, str(archives[0][kind])], check=True)
    done = subprocess.run(
        [python.with_name("frs-pipeline"), "--version"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == f"frs-pipeline {__version__}\n"


def pinned(path: Path) -> Path:
    """The versions of locks/dev.txt as constraints, which next month's releases do not change."""
    path.write_text("".join(f"{name}=={version}\n" for name, version in read_lock(ROOT / "locks/dev.txt").items()))
    return path
