"""The module itself: what its families have in common, and what sets them apart."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tests.frs.export.stand_in.building import add_builder
from tests.frs.export.stand_in.calls import Calls
from tests.frs.export.stand_in.running import add_runtime


@dataclass(frozen=True)
class Family:
    """What sets one line of versions apart.

    weak_typing: BuilderFlag.FP16 and INT8; strongly_typed: the flag can be named (11.1 keeps the name, and takes it for
    granted); explicit_batch: likewise; ahead_of_time: ComputeCapability, and compute capabilities in the config;
    runtime_cache: IRuntimeCache; memory: the engine's names of its device memory.
    """

    name: str
    version: str
    weak_typing: bool = False
    strongly_typed: bool = True
    explicit_batch: bool = False
    ahead_of_time: bool = False
    runtime_cache: bool = False
    memory: tuple[str, ...] = ("device_memory_size_v2",)


_BOTH = ("device_memory_size", "device_memory_size_v2")
FAMILIES = {
    "10.3": Family("tensorrt", "10.3.0", weak_typing=True, explicit_batch=True, memory=_BOTH),
    "10.16": Family("tensorrt", "10.16.0", weak_typing=True, explicit_batch=True, memory=_BOTH),
    "11": Family("tensorrt", "11.1.0"),
    "11, when the flag goes": Family("tensorrt", "11.9.0", strongly_typed=False),
    "rtx": Family("tensorrt_rtx", "1.7.1", ahead_of_time=True, runtime_cache=True),
}


class StandIn(SimpleNamespace):
    """The module: `calls` are those that were made of it, in order, as (name, arguments ...)."""

    calls: Calls


def stand_in(family: str, **behaviour: Any) -> Any:
    """A fresh module of that family; behaviour: see `Behaviour` in building.py."""
    kind = FAMILIES[family]
    module = StandIn(__name__=kind.name, __version__=kind.version, calls=Calls())
    add_builder(module, kind, **behaviour)
    add_runtime(module, kind)
    return module
