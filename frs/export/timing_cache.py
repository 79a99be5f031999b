"""How long each kernel took on this GPU, kept from one build to the next, so that TensorRT need not time it again.

A cache is a file of this project's own, with a checksum before TensorRT's bytes: those go to native code, which a damaged
file must not reach.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frs.edge.files import write_atomically
from frs.edge.machine import Gpu

SUFFIX = ".timing"
_MARK = b"frs timing cache 1 "


def cache_path(folder: Path, trt: Any, gpu: Gpu) -> Path:
    """A cache is good for one library, version and model of GPU."""
    parts = (trt.__name__, trt.__version__, gpu.name, gpu.sm)
    return folder / ("-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part) for part in parts) + SUFFIX)


def attach(trt: Any, config: Any, path: Path, say: Callable[[str], None]) -> bool:
    """Give the config the cache at `path`, or an empty one; False where the library keeps no such times.

    Where the library has a runtime cache (TensorRT-RTX: kernels are chosen where the plan is loaded), its timing cache is there
    for old callers and does nothing. What is damaged, or TensorRT says is of another machine, is passed over.
    """
    if hasattr(trt, "IRuntimeCache") or not hasattr(config, "create_timing_cache"):
        return False
    content = load(path, say)
    if content and not _set(config, content):
        say(f"{path}: a timing cache of another GPU or version, so this build does without it")
        content = b""
    return bool(content) or _set(config, b"")


def _set(config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, False))


def load(path: Path, say: Callable[[str], None]) -> bytes:
    """What `store` kept; b"" where there is nothing, or it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        say(f"{path}: cannot be read ({error.strerror}), so this build does without it")
        return b""
    head, _, content = data.partition(b"\n")
    if head != _MARK + hashlib.sha256(content).hexdigest().encode():
        say(f"{path}: a damaged timing cache, so this build does without it and writes it anew")
        return b""
    return content


def store(path: Path, content: bytes) -> str | None:
    """Replace the file in one step: of two builds at a time, the later one's times stay. What went wrong, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        return f"{path}: the timing cache was not kept ({error.strerror})"
    return None
