"""`tegrastats` as a child process that prints a line every interval."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from time import perf_counter_ns
from typing import IO

from frs.edge.telemetry.collect import Sampler
from frs.edge.telemetry.tegrastats import parse_line
from frs.edge.telemetry.throttling import NOT_REPORTED, JetsonThrottling

_GRACE_S = 2.0
_SILENCE = 10  # intervals without a line after which it is taken to hang
_SILENCE_S = 2.0  # but not before: it takes a moment to start
_LONGEST_LINE = 65_536
_REASONS = {
    "gpu_load": "tegrastats prints no load of the GPU here (no GR3D_FREQ with a percentage)",
    "power_mw": "tegrastats prints no power rail here",
    "throttled": NOT_REPORTED,
}


class TegrastatsSampler(Sampler):
    """Reads `tegrastats --interval` in a thread; enter it once.

    A sample's time is that of its line's arrival (see `frs.edge.telemetry.power`). Lines that come in less than a quarter of
    the interval after the one before are dropped, so that a program that floods the pipe costs neither memory nor time.

    The child never outlives us. It is ended, with what it started, on leaving; when this process is killed, the kernel ends it
    (`setpriv --pdeathsig`, of util-linux, rather than code between fork and exec, which is unsafe beside other threads), and
    without `setpriv` its next line meets a closed pipe.
    """

    source = "tegrastats"

    def __init__(self, program: str, interval_s: float, throttling: JetsonThrottling) -> None:
        super().__init__()
        self._throttling = throttling
        self._interval_s = interval_s
        self._command = [program, "--interval", str(max(1, round(1000 * interval_s)))]
        if setpriv := shutil.which("setpriv"):
            self._command = [setpriv, "--pdeathsig", "KILL", *self._command]
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._lines = 0
        self._last_line = b""
        self._last_time_ns = 0
        self._outcome: str | None = None
        self._left = False

    def __enter__(self) -> TegrastatsSampler:
        self._last_time_ns = perf_counter_ns()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # read with the lines, and told apart from them by its look
                start_new_session=True,  # a process group of its own, which Ctrl-C does not reach
            )
        except OSError as error:
            self._outcome = f"tegrastats cannot be started: {error.strerror}"
            return self
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._outcome = self._trouble()
        self._left = True
        if self._process is None:
            return
        assert self._process.stdout is not None
        if self._process.poll() is None or self._reader.is_alive():
            for end in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, end)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_S)
                self._reader.join(_GRACE_S)
                if self._process.poll() is not None and not self._reader.is_alive():
                    break
        if (
            not self._reader.is_alive()
        ):  # else something that left the group holds the pipe, and closing would wait for it
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stream: IO[bytes] = self._process.stdout
        quarter_ns = int(self._interval_s * 1e9 / 4)
        kept_ns = -quarter_ns
        while line := stream.readline(_LONGEST_LINE):
            now = perf_counter_ns()
            self._lines, self._last_line, self._last_time_ns = self._lines + 1, line, now
            if now - kept_ns < quarter_ns:
                continue
            if sample := parse_line(line.decode(errors="replace"), now):
                self._samples.append(replace(sample, throttled=self._throttling.read()))
                kept_ns = now

    def _trouble(self) -> str | None:
        if self._left or self._process is None:
            return self._outcome
        status = self._process.poll()
        said = (
            f": {self._last_line[:200].decode(errors='replace').strip()}" if not self._samples and self._lines else ""
        )
        if status is not None:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            return f"tegrastats {how} after {len(self._samples)} samples{said}"
        silent_s = (perf_counter_ns() - self._last_time_ns) / 1e9
        if silent_s > max(_SILENCE_S, _SILENCE * self._interval_s):
            return f"tegrastats printed nothing for {silent_s:.1f} s after {len(self._samples)} samples"
        if not self._samples and self._lines:
            return f"tegrastats prints lines that are not understood{said}"
        return None

    def _reason(self, field: str) -> str:
        return _REASONS.get(field, "tegrastats does not print it here")
