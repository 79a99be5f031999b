"""What the campaign does to real runs: starts, kills and repeats them, and compares what they leave, byte by byte."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent / "tiny.yaml"
STAGES = (
    "data", "preflight", "teacher", "control", "student", "export", "quantize", "engine", "parity", "validate", "profile",
    "report",
)  # fmt: skip

_CHANGING = {"seconds", "created", "profiles", "plan_sha256"}
"""Keys of our JSON files that hold a time, or that follow from one; NVIDIA's builder orders a plan's tables by address."""
_TIMED = re.compile(r"preflight/|profile/|report/report\.(html|md)$")
"""What holds measured times throughout; that it is there is all that can be compared."""


def command(*arguments: str, config: Path = TINY) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "run", str(config), *arguments]


def run(
    folder: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command to its end."""
    done = subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@dataclass(frozen=True)
class Struck:
    """What became of a process that got a signal: whether it was in time, the exit code, what it said."""

    in_time: bool
    code: int
    stdout: str
    stderr: str


def strike(
    folder: Path, stage: str, delay: float, how: signal.Signals, *arguments: str, training: bool = False
) -> Struck:
    """Start the command, wait until `stage` starts, `delay` seconds more, and send the signal to the process group.

    training: wait for the stage's first checkpoint besides, past the seconds in which torch is imported.
    """
    log = folder / f"strike-{stage}.txt"
    with log.open("w") as out, (folder / "stderr.txt").open("w") as err:
        process = subprocess.Popen(command(*arguments), cwd=folder, stdout=out, stderr=err, start_new_session=True)
        wait_for(log, f" {stage}: starts", process)
        while training and process.poll() is None and not checkpoints(folder, stage):
            time.sleep(0.002)
        time.sleep(delay)
        in_time = process.poll() is None
        if in_time:
            os.killpg(process.pid, how)
        code = process.wait(timeout=120)
    return Struck(in_time, code, log.read_text(), (folder / "stderr.txt").read_text())


def checkpoints(folder: Path, stage: str) -> list[Path]:
    """Those of the attempts at a stage."""
    return list(folder.glob(f"runs/.store/{stage}/*.partial/scratch/checkpoint.pt"))


def wait_for_checkpoint(folder: Path, stage: str, process: subprocess.Popen[Any], patience: float = 120.0) -> None:
    """Until the stage's training has saved its first one."""
    deadline = time.monotonic() + patience
    while not checkpoints(folder, stage):
        assert process.poll() is None, f"it ended with {process.returncode} before there was a checkpoint"
        assert time.monotonic() < deadline, "no checkpoint was ever written"
        time.sleep(0.002)


def wait_for(log: Path, words: str, process: subprocess.Popen[Any], patience: float = 120.0) -> None:
    """Until the words stand in the log, or the process has ended."""
    deadline = time.monotonic() + patience
    while words not in log.read_text():
        assert time.monotonic() < deadline, f"{words!r} never came: {log.read_text()}"
        if process.poll() is not None:
            assert words in log.read_text(), f"ended with {process.returncode} before {words!r}: {log.read_text()}"
        time.sleep(0.005)


def durations(folder: Path, name: str = "tiny") -> dict[str, float]:
    """Seconds that each stage took, as the manifest has them."""
    manifest = json.loads((folder / "runs" / name / "manifest.json").read_text())
    return {stage: record["duration"] for stage, record in manifest["stages"].items()}


def reused(stdout: str) -> set[str]:
    return set(re.findall(r"\] (\w+): reused", stdout))


def executed(stdout: str) -> set[str]:
    return set(re.findall(r"\] (\w+): done", stdout))


def entries(folder: Path, name: str = "tiny") -> dict[str, Path]:
    """Stage -> its finished entry, as the manifest names it."""
    manifest = json.loads((folder / "runs" / name / "manifest.json").read_text())
    return {stage: folder / "runs" / record["path"] for stage, record in manifest["stages"].items()}


def outputs(folder: Path, name: str = "tiny") -> dict[str, str]:
    """Stage/file -> what is in it: its hash; of JSON without what changes from run to run; of a plan its size."""
    found = {}
    for stage, entry in entries(folder, name).items():
        root = entry / "outputs"
        for path in sorted(root.rglob("*")):
            if path.is_file():
                key = f"{stage}/{path.relative_to(root)}"
                found[key] = "" if _TIMED.match(key) else _content(path)
    return found


def leftovers(folder: Path) -> list[str]:
    """Attempts and temporary files that nothing will ever use."""
    names = [path.name for path in (folder / "runs").rglob("*")]
    return [name for name in names if name.endswith((".partial", ".new", ".old", ".tmp")) or ".json." in name]


def copy(source: Path, target: Path) -> Path:
    """A workplace like the other, which may be spoilt."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "runs", target / "runs", symlinks=True)
    return target


def _content(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".plan":
        return f"{len(content)} bytes"
    if path.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content))).encode()
    if path.suffix == ".jsonl":
        content = json.dumps([_lasting(json.loads(line)) for line in content.splitlines()]).encode()
    return sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _CHANGING}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value
