"""A module of this project run as a process of its own, for so long and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frs.edge.child import child_environment

KEPT_LINES = 50
LINE_LENGTH = 500
_TAIL = 1 << 16


@dataclass(frozen=True)
class Ended:
    """How the process ended: its exit status, minus the signal that killed it, or None where its time was up; lines: the
    last ones of its standard error, KEPT_LINES of LINE_LENGTH at most."""

    status: int | None
    lines: list[str]

    def __str__(self) -> str:
        if self.status is None:
            return "its time was up"
        if self.status >= 0:
            return f"status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = "of no name"
        return f"signal {-self.status} ({name})"


def run_module(module: str, *arguments: str, folder: Path, timeout_s: float) -> Ended:
    """Run `python -m module arguments` in `folder`, a temporary one, where its standard error stays as `stderr`.

    The process leads a group, and all of it is killed when the time is up or this one is interrupted.
    """
    errors = folder / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            cwd=folder,  # so that nothing in the user's folder is imported
            env=child_environment(),
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ended(status, _last_lines(errors))


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return [line[:LINE_LENGTH] for line in lines[-KEPT_LINES:]]
