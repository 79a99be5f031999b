"""What several commands take: the folder of the runs, and a run in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])


def runs_dir_option(command: Command) -> Command:
    return click.option(
        "--runs-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("runs"),
        show_default=True,
        help="Folder of the runs and their common store.",
    )(command)


def run_folder(run: str, runs_dir: Path) -> Path:
    """The folder of a run that is given by its name or its folder. Raises ConfigError where there is none."""
    for folder in (runs_dir / run, Path(run)):
        if (folder / "manifest.json").is_file():
            return folder
    names = sorted(path.parent.name for path in runs_dir.glob("*/manifest.json"))
    there = f"the runs are {', '.join(names)}" if names else "there is none yet"
    raise ConfigError(f"there is no run {run} in {runs_dir}; {there}.")
