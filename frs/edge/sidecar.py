"""`<plan>.json`, beside each TensorRT plan: what built it and for what, and whether this machine may load it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from frs.edge.machine import Gpu
from frs.errors import EngineError

PROVEN = ("failed", "planned", "deserialised", "executed")
REBUILD = (
    "build it here: `frs-pipeline run CONFIG --force engine` in a run, `frs-pipeline device run BUNDLE` on a device"
)
_LARGEST = 4 << 20
"""Bytes; a thousand class names and a full log are a hundredth of it."""


@dataclass(frozen=True)
class Sidecar:
    """What became of a build.

    builder: "tensorrt" or "tensorrt_rtx", version: its own, both None where its process died before it could say; target:
    compute capability, as in "sm_87"; gpu, driver: of the machine that built it, None without a GPU. profile: of an open
    batch, input -> least, usual and greatest shape. proven: one of PROVEN (compiled, taken by a GPU, run on it); message:
    why it failed, or why no more is proven. seconds: of the build; size_mb: 10^6 bytes; workspace_mb: 2^20 bytes. log: the
    builder's last warnings and errors. properties: the ONNX file's metadata, see `GraphMetadata`.
    """

    builder: str | None
    version: str | None
    target: str | None
    gpu: str | None
    driver: str | None
    profile: dict[str, list[list[int]]] | None
    proven: str
    message: str | None
    seconds: float
    size_mb: float | None
    bytes: int | None
    plan_sha256: str | None
    onnx_sha256: str
    workspace_mb: int
    log: list[str]
    properties: dict[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Sidecar:
        """Keys that this version does not know are passed over. Raises EngineError, with the file and the key."""
        try:
            content = json.loads(text)
            json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair can be written nowhere
        except (ValueError, RecursionError):
            raise EngineError(f"{path}: not JSON; {REBUILD}") from None
        if not isinstance(content, Mapping):
            raise EngineError(f"{path}: expected a mapping, got {_short(content)}; {REBUILD}")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in content]:
            raise EngineError(f"{path}: lacks {', '.join(missing)}; {REBUILD}")
        for name in names:
            check, expected = _CHECKS[name]
            if not check(content[name]):
                raise EngineError(f"{path}: {name} is {_short(content[name])}, expected {expected}; {REBUILD}")
        return cls(**{name: content[name] for name in names})

    @classmethod
    def of(cls, plan: Path) -> Sidecar:
        """The one that lies beside a plan. Raises EngineError where there is none, or it cannot be read."""
        path = sidecar_path(plan)
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except OSError as error:
            raise EngineError(
                f"{path}: cannot be read ({error.strerror}), and a plan is not loaded without it; copy it too, or {REBUILD}"
            ) from None
        if len(data) > _LARGEST:
            raise EngineError(f"{path}: larger than {_LARGEST >> 20} MiB, so no build wrote it; {REBUILD}")
        return cls.from_json(data.decode(errors="replace"), path)


def sidecar_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def refusal(sidecar: Sidecar, *, library: str, version: str, gpu: Gpu | None, plan_sha256: str) -> str | None:
    """Why a plan must not be loaded here, and the command that rebuilds it; None where it may be.

    library: the name of the module that would load it, version: its own; gpu: the one here; plan_sha256: of the plan's bytes.
    A plan holds machine code: on another GPU, or by another version, it fails at best. TensorRT times its kernels on one
    model of GPU, so that model must be the same; TensorRT-RTX compiles for a compute capability, so that is enough there.
    """
    reason = _reason(sidecar, library, version, gpu, plan_sha256)
    return reason and f"{reason}; {REBUILD}"


def _reason(sidecar: Sidecar, library: str, version: str, gpu: Gpu | None, plan_sha256: str) -> str | None:
    if sidecar.proven == "failed" or sidecar.plan_sha256 is None:
        return f"its build failed ({sidecar.message or 'no reason given'})"
    if sidecar.plan_sha256 != plan_sha256:
        return (
            f"its sha256 is {plan_sha256}, its sidecar is of {sidecar.plan_sha256}: the one or the other was replaced"
        )
    if (sidecar.builder, sidecar.version) != (library, version):
        return f"it was built by {sidecar.builder} {sidecar.version}, and {library} {version} would load it"
    if gpu is None:
        return f"it was built for {sidecar.target}, and no GPU is found here"
    if sidecar.target != gpu.sm:
        return f"it was built for {sidecar.target}, and the GPU here ({gpu.name}) is {gpu.sm}"
    if library == "tensorrt" and sidecar.gpu != gpu.name:
        return f"it was built on {sidecar.gpu}, and the GPU here is {gpu.name}"
    return None


def _is(*types: type) -> Callable[[Any], bool]:
    """Exactly of one of the types: a bool is no int."""
    return lambda value: type(value) in types


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _profile(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_shapes, value.values())))


def _shapes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape) for shape in value)
    )


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _properties(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_TEXT_OR_NULL = (_is(str, type(None)), "text or null")
_SIZE_OR_NULL = (_or_null(_number), "a number from 0 on, or null")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("builder", "version", "target", "gpu", "driver", "message"), _TEXT_OR_NULL),
    "profile": (_profile, "input -> three shapes, or null"),
    "proven": (lambda value: value in PROVEN, f"one of {', '.join(PROVEN)}"),
    "seconds": (_number, "a number from 0 on"),
    "size_mb": _SIZE_OR_NULL,
    "bytes": (_or_null(lambda value: type(value) is int and value >= 0), "a whole number from 0 on, or null"),
    "plan_sha256": (_or_null(_sha256), "64 hexadecimal digits, or null"),
    "onnx_sha256": (_sha256, "64 hexadecimal digits"),
    "workspace_mb": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "log": (_texts, "lines of text"),
    "properties": (_properties, "text for every key"),
}
