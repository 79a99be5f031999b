"""Checkpoints from which a training goes on as if it had never stopped."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FILE, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimiser steps.

    objective, optimizer: state dicts; history: the epochs so far; sums, figures: the running sums and the last figures of
    the epoch that is under way. Order and augmentation of the data follow from the step alone, and so does every random
    layer.
    """

    step: int
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]]
    sums: dict[str, float]
    figures: dict[str, float]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the folder's checkpoint and keep the one before: a kill at any moment leaves at least one of them whole.

    Raises OSError, with the path, where it cannot be written; what is there is then as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / FILE, folder / (FILE + ".tmp")
    try:
        _write(partial, checkpoint)
        if path.exists():
            path.replace(folder / PREVIOUS)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, checkpoint: Checkpoint) -> None:
    try:
        with path.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch meets the file's error, and raises another one about its own archive.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None


def load(folder: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None.

    What is damaged is logged and set aside, so that it takes the place of none that is whole. Raises OSError and whatever
    else is the machine's fault, not the file's: no rights, no memory.
    """
    for path in (folder / FILE, folder / PREVIOUS):
        if path.exists():
            try:
                return _read(path)
            except _Damaged as error:
                aside = path.with_suffix(".damaged.pt")
                path.replace(aside)
                log(f"{path.name} is damaged ({error}) and is passed over; it is kept as {aside.name}")
    return None


class _Damaged(Exception):
    """The file is not what was written."""


def _read(path: Path) -> Checkpoint:
    try:
        # torch does not compare the checksums in its own files: a flipped bit would be loaded as a weight.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # zipfile and torch say with a dozen kinds of them that a file is not whole
        if _of_the_machine(error):
            raise
        raise _Damaged(_first_line(error)) from None
    raise _Damaged(f"checksum of {broken}")


def _of_the_machine(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno not in (errno.EINVAL, errno.EIO)
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
