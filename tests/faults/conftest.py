from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.lab import durations, outputs, run


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to: its workplace, what it made, how long each stage took."""

    folder: Path
    outputs: dict[str, str]
    durations: dict[str, float]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return Undisturbed(folder, outputs(folder), durations(folder))
