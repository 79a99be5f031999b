"""In place of the runtime part of TensorRT: a plan is an ONNX file, which ONNX Runtime runs on what lies in the device's
buffers when the stream comes that far."""

from __future__ import annotations

import ctypes
import sys
import types
import weakref
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import onnxruntime
import pytest

from frs.edge import trt
from frs.edge.machine import Gpu
from tests.frs.edge.stand_in.cuda import KERNEL_MS, Cuda
from tests.frs.export.stand_in import stand_in

ORIN = Gpu("Orin", "sm_87", "540.4.0")
CONTEXT_BYTES = 1_000_000


class DataType(IntEnum):
    FLOAT = 0
    INT32 = 3
    UINT8 = 5


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


_KINDS = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(int32)": (DataType.INT32, np.int32),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
}


@dataclass
class Behaviour:
    """profile: least, usual and greatest of an open batch; the others: whether that call succeeds, and `says`: what the
    logger is told where it does not. capturable: whether `execute_async_v3` can be captured once it has run."""

    profile: tuple[int, int, int] = (1, 2, 4)
    deserialises: bool = True
    makes_context: bool = True
    takes_address: bool = True
    takes_shape: bool = True
    executes: bool = True
    capturable: bool = True
    says: str = "no room at the inn"


def tensorrt(family: str, cuda: Cuda, does: Behaviour) -> Any:
    """A module of that family of versions, whose plans run on that device."""
    module = stand_in(family)
    module.DataType, module.TensorIOMode = DataType, TensorIOMode

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if not does.deserialises:
                self._logger.log(module.ILogger.ERROR, does.says)
                self._logger.log(module.ILogger.ERROR, "and so it was given up")
                return None
            return Engine(cuda, does, serialized_engine, self._logger, module.ILogger.ERROR)

    module.Runtime = Runtime
    return module


def install(monkeypatch: pytest.MonkeyPatch, family: str, cuda: Cuda, does: Behaviour, gpu: Gpu | None = ORIN) -> Any:
    """So that `import` finds it, and cuda-bindings' stand-in, on a machine with that GPU."""
    module = tensorrt(family, cuda, does)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(trt, "find_gpu", lambda: gpu)
    return module


class Engine:
    """It holds the device's memory, as much as its plan is long, until it is forgotten."""

    def __init__(self, cuda: Cuda, does: Behaviour, plan: bytes, logger: Any, error: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._modes = [TensorIOMode.INPUT] * len(inputs) + [TensorIOMode.OUTPUT] * len(outputs)
        self._tensors = {each.name: each for each in (*inputs, *outputs)}
        self._cuda, self._does, self._logger, self._error = cuda, does, logger, error
        _hold(self, "engine", cuda, len(plan))

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._modes[list(self._tensors).index(name)]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _KINDS[self._tensors[name].type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        batch, *shape = self.get_tensor_shape(name)
        assert (batch, profile_index) == (-1, 0)
        return [(each, *shape) for each in self._does.profile]

    def create_execution_context(self) -> Context | None:
        if not self._does.makes_context:
            self._logger.log(self._error, self._does.says)
            return None
        return Context(self, self._cuda, self._does, self._logger, self._error)


class Context:
    def __init__(self, engine: Engine, cuda: Cuda, does: Behaviour, logger: Any, error: Any) -> None:
        self._engine = weakref.proxy(engine)  # as in C++: to outlive the engine is a fault
        self._session, self._cuda, self._does = engine._session, cuda, does
        self._logger, self._error = logger, error
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._prepared: tuple[int, ...] | None = None
        _hold(self, "context", cuda, CONTEXT_BYTES)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        expected = self._engine.get_tensor_shape(name)
        least, _, greatest = self._does.profile
        fits = shape[0] == expected[0] or (expected[0] == -1 and least <= shape[0] <= greatest)
        self._shape = shape
        return self._answer(fits and shape[1:] == expected[1:] and self._does.takes_shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._engine.get_tensor_mode(name)
        self._addresses[name] = memory
        return self._answer(self._does.takes_address)

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._cuda.calls.append("execute_async_v3")
        if self._cuda.capturing and not (self._prepared == self._shape and self._does.capturable):
            self._cuda.break_capture()
            return self._answer(False)
        self._prepared = shape = self._shape
        self._cuda.put(stream_handle, lambda: self._run(shape), KERNEL_MS)
        return self._answer(self._does.executes)

    def _run(self, shape: tuple[int, ...]) -> None:
        images = np.empty(shape, np.uint8)
        ctypes.memmove(images.ctypes.data, self._cuda.at(self._addresses["images"], images.nbytes), images.nbytes)
        names = [each.name for each in self._session.get_outputs()]
        for name, found in zip(names, self._session.run(names, {"images": images}), strict=True):
            whole = np.ascontiguousarray(found)
            ctypes.memmove(self._cuda.at(self._addresses[name], whole.nbytes), whole.ctypes.data, whole.nbytes)

    def _answer(self, well: bool) -> bool:
        if not well:
            self._logger.log(self._error, self._does.says)
        return well


def _hold(owner: Any, what: str, cuda: Cuda, size: int) -> None:
    """Take memory of the device, note it, and give it back with the object's end."""

    def forget() -> None:
        cuda.calls.append(f"~{what}")
        cuda.taken -= size

    cuda.calls.append(what)
    cuda.taken += size
    weakref.finalize(owner, forget)
