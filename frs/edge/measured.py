"""What is timed, and what its process tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from frs.edge.timing import WarmUp


@dataclass(frozen=True)
class Artifact:
    """What is to be timed: "student" "fp16" in "onnxruntime" or "tensorrt", and its file."""

    model: str
    precision: str
    runtime: str
    path: Path


class Run(NamedTuple):
    """Nanoseconds of one run. session: copies and inference together; gpu: the inference by the device's own events."""

    total: int
    preprocess: int
    session: int
    copy_in: int | None
    infer: int
    copy_out: int | None
    postprocess: int
    gpu: int | None


@dataclass(frozen=True)
class Block:
    """Runs without a pause. start_ns, end_ns: by `perf_counter_ns`, one clock for all processes of a machine; cpu_ns: what
    our own processes used of all cores meanwhile."""

    runs: Sequence[Run]
    start_ns: int
    end_ns: int
    cpu_ns: int


@dataclass(frozen=True)
class Measured:
    """All that one artifact's process told. threads: None where a GPU runs it."""

    artifact: Artifact
    batch: int
    provider: str
    threads: int | None
    cold_start_ms: float
    opened_ns: tuple[int, int]
    """From before the file was opened until the warm-up's end."""
    warm_up: WarmUp
    blocks: Sequence[Block]
    peak_mb: float | None
    device_mb: float | None
