from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.device.small_bundle import contents, write_small


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """What the small bundle is made of."""
    return contents(tmp_path_factory.mktemp("contents"))


@pytest.fixture(scope="session")
def small(made: dict[str, tuple[bytes, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle."""
    return write_small(tmp_path_factory.mktemp("small") / "small.tar", made)
