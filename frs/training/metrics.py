"""A training's figures while it goes: lines of JSON, and TensorBoard's files where they are asked for.

metrics.jsonl has {"kind": "step", "step", "epoch", "lr", "gradient_norm", "loss"} of single steps, and {"kind": "epoch",
"step", "epoch", "lr", "seconds", "AP", "skipped", "loss"} of whole epochs, the losses as their means; both with every term
and figure by its name. Steps are counted from 1, epochs from 0. What is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from frs.distributed import local_rank
from frs.errors import RuntimeMissing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE, TENSORBOARD = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """Writes `folder/metrics.jsonl` and, if asked, `folder/tensorboard/`.

    Goes on behind the first `step` steps and `epochs` epochs, which a checkpoint holds: what an interrupted attempt wrote
    beyond them is taken back, for it is done again. Nothing is created before the first line. Of several ranks the first
    one of each machine writes, for each has a stage's outputs to make. Raises RuntimeMissing when TensorBoard's package is
    asked for and missing, OSError where the file cannot be written.
    """

    def __init__(self, folder: Path, *, step: int, epochs: int, tensorboard: bool) -> None:
        self.path = folder / FILE
        self.file: IO[bytes] | None = None
        self.writes = local_rank() == 0
        self.board = _summary_writer(folder / TENSORBOARD, step + 1) if tensorboard and self.writes else None
        if self.writes and self.path.exists():
            _take_back(self.path, step, epochs)

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """One line. kind: "step" or "epoch"; step: those that are done; figures: JSON's types, NaN and infinity too."""
        if not self.writes:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab", buffering=0)  # whoever follows the file sees whole lines
        line = {"kind": kind, "step": step, **{name: _plain(value) for name, value in figures.items()}}
        self.file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        if self.board is not None:
            for name, value in figures.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> None:
        """What was written survives a loss of power; to be called before a checkpoint is written."""
        if self.file is not None:
            os.fsync(self.file.fileno())
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


def _summary_writer(folder: Path, purge_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RuntimeMissing(
            "train.tensorboard is true, and the package tensorboard is not here; pip install tensorboard, or set it to false"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step)


def _take_back(path: Path, step: int, epochs: int) -> None:
    """Leave the lines of the first `step` steps and `epochs` epochs, up to one that is torn."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            done = entry["epoch"] < epochs if entry["kind"] == "epoch" else entry["step"] <= step
        except (ValueError, KeyError, TypeError):
            break
        if done:
            kept.append(line)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(b"".join(kept))
    partial.replace(path)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
