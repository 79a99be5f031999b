"""The whole pipeline once on a handful of real tiles; the tests look at what it left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SMALL = Path(__file__).parent / "small.yaml"


def frs_pipeline(*arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line as a user has it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the run `small` has ended well."""
    folder = tmp_path_factory.mktemp("workplace")
    done = frs_pipeline("run", SMALL, cwd=folder)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="session")
def finished(workplace: Path) -> Path:
    """The run folder of `small`."""
    return workplace / "runs" / "small"
