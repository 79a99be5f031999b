"""Checkpoints from which a training goes on as if it had never stopped."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

FILE, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_SHA256 = 32
"""Bytes of the hash that a checkpoint ends with, of all that stands before it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimiser steps.

    objective, optimizer, scaler: state dicts, the last of the loss's scale; ema: the running mean of the weights, if there
    is one; history: the epochs so far; sums, figures, skipped: the running sums, the last figures and the skipped steps of
    the epoch that is under way. Order and augmentation of the data follow from the step alone, and so does every random
    layer.
    """

    step: int
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]]
    sums: dict[str, float]
    figures: dict[str, float]
    skipped: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Any] | None = None


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
        with path.open("w+b") as file:
            torch.save(vars(checkpoint), file)
            # torch checks nothing when it loads: a flipped bit would be a weight. It does not mind what stands behind its own.
            file.write(_sha256(file, file.tell()))
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
    if not _is_whole(path):
        raise _Damaged("its content is not what its sha256 says")
    return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size - _SHA256
            return size > 0 and _sha256(file, size) == file.read()
    except OSError as error:
        if error.errno == errno.EIO:  # the disk cannot read it any more
            return False
        raise


def _sha256(file: IO[bytes], size: int) -> bytes:
    """Of the file's first bytes; the next one that is read is the one behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size:
        part = file.read(min(size, 1 << 20))
        digest.update(part)
        size -= len(part)
    return digest.digest()
