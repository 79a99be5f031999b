"""Of a stand-in: logger, network, parser, config and builder."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.frs.export.stand_in.calls import Calls

if TYPE_CHECKING:
    from tests.frs.export.stand_in.module import Family


@dataclass(frozen=True)
class Behaviour:
    """batch: of the parsed network's input `images`, (batch, 3, 8, 8), -1: open. parses, builds: whether the library takes
    the graph. takes_cache: whether a timing cache with content suits it; EMPTY always does."""

    batch: int = 1
    parses: bool = True
    builds: bool = True
    takes_cache: bool = True


class Logger:
    """As in TensorRT: the class carries its own severities."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None: ...


def add_builder(module: Any, family: Family, **behaviour: Any) -> None:
    """The names that a build needs."""
    calls, does = module.calls, Behaviour(**behaviour)
    module.ILogger = Logger
    module.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    module.NetworkDefinitionCreationFlag = SimpleNamespace()
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    if family.explicit_batch:
        module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH = 0
    if family.strongly_typed:
        module.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    if family.weak_typing:
        module.BuilderFlag.FP16, module.BuilderFlag.INT8 = "FP16", "INT8"
    if family.ahead_of_time:
        known = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121", "CURRENT", "NONE")
        module.ComputeCapability = SimpleNamespace(**{name: name for name in known})
    if family.runtime_cache:
        module.IRuntimeCache = object
    module.OnnxParser = lambda network, logger: _Parser(calls, does)
    module.Builder = lambda logger: _Builder(calls, family, does, logger)


class _Parser:
    num_errors = 1

    def __init__(self, calls: Calls, does: Behaviour) -> None:
        self._calls, self._does = calls, does

    def parse_from_file(self, model: str) -> bool:
        self._calls.note("parse_from_file", model)
        return self._does.parses

    def get_error(self, index: int) -> Any:
        assert index == 0
        return SimpleNamespace(desc=lambda: "no importer for /nms", code=lambda: "UNSUPPORTED_NODE")


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, greatest: Any) -> None:
        self.shapes[name] = (least, usual, greatest)


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class _Config:
    """Of every family."""

    def __init__(self, calls: Calls, does: Behaviour) -> None:
        self._calls, self._does, self._cache = calls, does, _TimingCache(b"")

    def set_flag(self, flag: str) -> None:
        self._calls.note("set_flag", flag)

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self._calls.note("set_memory_pool_limit", pool, pool_size)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self._calls.note("add_optimization_profile", profile.shapes)
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> _TimingCache:
        self._calls.note("create_timing_cache", bytes(serialized_timing_cache))
        return _TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self._calls.note("set_timing_cache", cache.content, ignore_mismatch)
        if cache.content and not self._does.takes_cache:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache:
        return self._cache


class _ConfigWithCapabilities(_Config):
    """Of a family that compiles ahead of time."""

    def __init__(self, calls: Calls, does: Behaviour) -> None:
        super().__init__(calls, does)
        self.num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: str, index: int) -> bool:
        self._calls.note("set_compute_capability", compute_capability, index)
        return index < self.num_compute_capabilities


class _Builder:
    def __init__(self, calls: Calls, family: Family, does: Behaviour, logger: Logger) -> None:
        self._calls, self._family, self._does, self._logger = calls, family, does, logger

    def create_network(self, flags: int = 0) -> Any:
        self._calls.note("create_network", flags)
        entry = SimpleNamespace(name="images", shape=(self._does.batch, 3, 8, 8))
        return SimpleNamespace(num_inputs=1, get_input=lambda index: [entry][index])

    def create_builder_config(self) -> _Config:
        return (_ConfigWithCapabilities if self._family.ahead_of_time else _Config)(self._calls, self._does)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: Any, config: _Config) -> bytes | None:
        self._calls.note("build_serialized_network")
        self._logger.log(Logger.INFO, "weights 00 11 22")
        self._logger.log(Logger.WARNING, "w" * 10_000)
        if not self._does.builds:
            self._logger.log(Logger.ERROR, "no kernel for /nms")
        return b"plan" if self._does.builds else None
