"""A disk that is full, for real: a small tmpfs, filled to the page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.lab import executed, leftovers, reused, run
from tests.faults.test_kills import check_whole

PAGE = 4096
CONTINUES = "make room and give the same command again, it continues"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def leave(disk: Path, pages: int) -> Path:
    """Fill the disk but for so many pages."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes((os.statvfs(disk).f_bavail - pages) * PAGE))
    return ballast


def test_full_while_a_checkpoint_is_written(disk: Path, undisturbed: Undisturbed) -> None:
    run(disk, "--until", "preflight")
    ballast = leave(disk, 16)
    failed = run(disk, "--until", "teacher", code=1)
    assert failed.stderr.count("\n") == 1
    assert "stage teacher: No space left on device: " in failed.stderr
    assert "checkpoint.pt.tmp; " + CONTINUES in failed.stderr
    ballast.unlink()
    assert reused(run(disk, "--until", "teacher").stdout) == {"data", "preflight"}
    check_whole(disk, undisturbed, until="teacher")


def pages_needed(disk: Path) -> int:
    """Of the data stage from an empty folder."""
    before = os.statvfs(disk).f_bavail
    run(disk, "--until", "data")
    (disk / "runs/.store/.hashes.json").unlink(missing_ok=True)  # written or not by how long it took
    needed = before - os.statvfs(disk).f_bavail
    empty(disk)
    return needed


def empty(disk: Path) -> None:
    subprocess.run(["rm", "-rf", *disk.iterdir()], check=True)


# The last pages are the entry in the store, the copy in the run folder, the manifest and the memo of hashes.
@pytest.mark.parametrize(
    "missing", [*range(1, 9), *(pytest.param(k, marks=pytest.mark.campaign) for k in range(9, 90, 3))]
)
def test_full_at_any_write_of_a_stage(disk: Path, undisturbed: Undisturbed, missing: int) -> None:
    needed = pages_needed(disk)
    ballast = leave(disk, max(needed - missing, 0))
    failed = run(disk, "--until", "data", code=1)
    assert failed.stderr.count("\n") == 1
    assert "No space left on device" in failed.stderr
    assert CONTINUES in failed.stderr
    ballast.unlink()
    finished = any(path.parent.suffix != ".partial" for path in disk.glob("runs/.store/data/*/entry.json"))
    assert bool(executed(run(disk, "--until", "data").stdout)) != finished, "what is in the store is not done again"
    check_whole(disk, undisturbed, until="data")
    assert "nothing to do" in run(disk, "--until", "data").stdout
    assert leftovers(disk) == []
