"""Checkpoints from which a training goes on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frs.errors import TrainingError

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` optimiser steps.

    objective, optimizer: state dicts; history: the epochs so far; sums: the running means of the epoch that is under
    way. Order and augmentation of the data follow from the step alone, and so does every random layer.
    """

    step: int
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]]
    sums: dict[str, float]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint in one step: a kill at any moment leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (FILE + ".tmp")
    with partial.open("wb") as file:
        torch.save(vars(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def load(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, or None when there is none. Raises TrainingError when it is damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError, TypeError, OSError) as error:
        raise TrainingError(
            f"{path}: the checkpoint is damaged ({str(error).splitlines()[0]}); delete it and run again: the "
            "training then starts anew"
        ) from None
