"""pip in a test, and what becomes of the test where no package index can be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def from_the_index(*arguments: str | Path) -> str:
    """What `pip ARGUMENTS` prints. Where it fails the test does, unless pip cannot even find itself: then it is skipped."""
    done = _run(*arguments)
    if done.returncode and _run("install", "--dry-run", "--ignore-installed", "--no-cache-dir", "pip").returncode:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PIP, *arguments], capture_output=True, text=True, check=False)
