"""A pipeline in a process of its own, for the tests that kill it: `python -m tests.pipeline.worker ARGUMENT...`.

The arguments are the command line's; configuration and stages are the test's. The one stage, `train`, says "step N"
after each step, keeps a checkpoint in its scratch folder, and goes on when RUNS/go has a file named after the next step.
"""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import pipeline.loading
from pipeline.cli import main
from pipeline.stage import Context, Stage
from tests.pipeline.lab import settings

STEPS = 4


def wait_for(context: Context, name: str) -> None:
    until = time.monotonic() + 60
    while not (context.run_dir.parent / "go" / name).exists() and time.monotonic() < until:
        time.sleep(0.005)


def train(context: Context) -> dict[str, Any]:
    checkpoint = context.scratch / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    first = done
    if "WORKER_FORKS" in os.environ and os.fork() == 0:  # a data-loading worker that outlives its parent
        os.close(1)
        os.close(2)
        wait_for(context, "leave")
        os._exit(0)
    while done < STEPS:
        wait_for(context, str(done + 1))
        done += 1
        checkpoint.write_text(str(done))
        context.progress.log(f"step {done}")
    context.outputs["weights"].write_text("trained")
    return {"first": first}


def graph(_: object) -> tuple[Stage, ...]:
    return (Stage("train", {}, {"weights": "weights.bin"}, ("train",), 1, train, publish={"weights": "weights.bin"}),)


def load_config(path: Path, overrides: tuple[str, ...]) -> Any:
    return settings(path.name, {"train": {"epochs": STEPS}})


if __name__ == "__main__":
    stages = types.ModuleType("stages")
    stages.graph = graph  # type: ignore[attr-defined]
    sys.modules["stages"] = stages
    pipeline.loading.load_config = load_config  # type: ignore[assignment]
    main()
