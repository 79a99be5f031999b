"""The same configuration, seed, machine and number of threads, on the CPU: the same weights to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.stages.conftest import SMALL

ROOT = Path(__file__).parents[2]
COMMIT = 40 * "c"
WEIGHTS = ("teacher.safetensors", "control.safetensors", "student.safetensors")


def trained(checkout: Path) -> dict[str, str]:
    """sha256 of the weights of a run of a copy of the packages, with a store of its own."""
    for package in ("pipeline", "stages", "frs"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        str(SMALL),
        "--set",
        "runtime.threads=2",
        "--until",
        "student",
    ]
    environment = {**os.environ, "FRS_COMMIT": COMMIT}
    done = subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    folder = checkout / "runs" / "small"
    stages = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert {stage["commit"] for stage in stages.values()} == {COMMIT}, "what an image says that it was built from"
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WEIGHTS}


def test_two_fresh_checkouts_train_the_same_student(tmp_path: Path) -> None:
    assert trained(tmp_path / "one") == trained(tmp_path / "two")
