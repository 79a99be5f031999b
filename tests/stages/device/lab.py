"""A device.json as a device writes it, a far end that pretends to measure, and a screen that is looked at."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.console import Console
from tests.stages.device.sshd import Far
from tests.stages.report.lab import report

ROOT = Path(__file__).parents[3]
SHA256 = "0" * 64
LIBRARIES = {
    "onnxruntime": {"version": "1.32.0", "missing": None},
    "tensorrt": {"version": None, "missing": "ModuleNotFoundError: No module named 'tensorrt'"},
    "tensorrt-rtx": {"version": None, "missing": "ModuleNotFoundError: No module named 'tensorrt_rtx'"},
    "pycocotools": {"version": "2.0.11", "missing": None},
    "jinja2": {"version": "3.1.6", "missing": None},
}
INFO = {"frs_pipeline": __version__, "bundle_format": 1, "device": "A board", "gpu": None, "libraries": LIBRARIES}

_HEAD = (ROOT / "stages" / "device" / "templates" / "device.html").read_text()
PAGE = _HEAD[_HEAD.index("<!doctype") : _HEAD.index("<title>")] + "<title>A page</title>"

_STUB = """\
#!{python}
import hashlib, json, os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
home = pathlib.Path(__file__).parent
if sys.argv[1:] == ["device", "info"]:
    print(json.dumps({info!r}, indent=1))
    sys.exit()
assert sys.argv[1:] == ["device", "run", "bundle.tar", "-o", "results", "--attended"], sys.argv
from frs.interrupts import end_unattended
end_unattended()
(home / "pid").write_text(str(os.getpid()))
sha256 = hashlib.sha256(pathlib.Path("bundle.tar").read_bytes()).hexdigest()
results = pathlib.Path("results")
results.mkdir(exist_ok=True)

def finish(code=0, **changes):
    document = {{**{document!r}, "bundle_sha256": sha256, **changes}}
    (results / "device.json").write_text(json.dumps(document))
    (results / "device.html").write_text({page!r})
    sys.exit(code)

def say(text):
    print(text, flush=True)

{run}
finish()
"""


def device(**changes: Any) -> dict[str, Any]:
    """A device.json with the figures of `report()`."""
    return {**report(), "kind": "device", "device": "A board", "bundle_sha256": SHA256, **changes}


def stub(far: Far, run: str = "", info: dict[str, Any] = INFO) -> str:
    """A frs-pipeline at the far end that does `run` in place of measuring; returns --command."""
    text = _STUB.format(python=sys.executable, root=str(ROOT), info=info, document=device(), page=PAGE, run=run)
    return str(far.script("stub.py", text))


class Watched(Console):
    """What a push shows; `on` is called with every line, and `moved` with the bytes of the upload."""

    def __init__(self, on: Callable[[str], None] | None = None, moved: Callable[[float], None] | None = None) -> None:
        self.file = io.StringIO()
        super().__init__(self.file)
        self._on, self._moved = on, moved

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def print(self, text: str = "") -> None:
        super().print(text)
        if self._on:
            self._on(text)

    def update(self, done: float, total: float, **figures: float | str) -> None:
        super().update(done, total, **figures)
        if self._moved:
            self._moved(done)


def packed(content: bytes) -> Callable[[Path], str]:
    """In place of a bundle, these bytes."""

    def pack(path: Path) -> str:
        path.write_bytes(content)
        return f"{len(content)} bytes"

    return pack


def result(run_dir: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "devices" / name / "device.json").read_text())
    return found
