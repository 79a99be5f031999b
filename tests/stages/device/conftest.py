from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.device.small_bundle import contents, write_small
from tests.stages.device.sshd import Far, running


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """What the small bundle is made of."""
    return contents(tmp_path_factory.mktemp("contents"))


@pytest.fixture(scope="session")
def small(made: dict[str, tuple[bytes, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle."""
    return write_small(tmp_path_factory.mktemp("small") / "small.tar", made)


@pytest.fixture(scope="module")
def server() -> Iterator[Far]:
    """A real sshd on loopback, with `ssh` on PATH that knows it."""
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
    """Of a run that a push has to leave as it is."""
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "student.onnx").write_text("an artifact")
    return tmp_path
