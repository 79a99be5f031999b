"""In place of `cuda.bindings.runtime`.

A device's memory is memory of this process under addresses that only the copies here can follow. What is put on a stream is
done when it is synchronised and not before, so that an answer which is read too early is another one. Misuse that CUDA would
answer with a crash, or not at all, is an AssertionError.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from typing import Any

TOTAL = 8_000_000_000
COPY_MS, KERNEL_MS = 0.001, 0.002
"""What a copy and a launch take on the device's clock."""

Work = Callable[[], None]


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = (cudaError_t.cudaSuccess,)


class Handle:
    """Of a stream, an event or a graph: an object that is a number when asked."""

    _numbers = itertools.count(0x5000)

    def __init__(self) -> None:
        self._number = next(self._numbers)
        self.work: list[Work] = []
        self.time: float | None = None

    def __int__(self) -> int:
        return self._number


def call(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """A function of CUDA's with so many results: it is noted, and fails where the test wants it to."""

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        @wraps(function)
        def called(self: Cuda, *arguments: Any) -> tuple[Any, ...]:
            assert self.present, f"{function.__name__} without a device"
            name = function.__name__
            self.calls.append(name)
            times = self.calls.count(name)
            if self.fails.get(name) == times:
                return self.error, *[None] * results
            found = function(self, *arguments)
            if isinstance(found, cudaError_t):
                return found, *[None] * results
            return (*OK, *(found if results > 1 else [found][:results]))

        called.results = results  # type: ignore[attr-defined]
        return called

    return decorate


class Cuda:
    """The module. `calls`: names, in order, and what a test notes among them; `fails`: name -> which call of it answers
    `error`; `memory`: of the device, address -> bytes; `present`: whether there is a device."""

    __name__ = "cuda.bindings.runtime"
    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.error = cudaError_t.cudaErrorIllegalAddress
        self.present = True
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: set[Handle] = set()
        self.events: set[Handle] = set()
        self.graphs: set[Handle] = set()
        self.executables: set[Handle] = set()
        self.taken = 0
        """Bytes of the device, by others than `cudaMalloc`."""
        self._next_address = 0x7F_0000_0000_0000
        self._clock = 0.0
        self._captured: Handle | None = None
        self._capture_broken = False

    @property
    def live(self) -> int:
        """What was taken and not given back."""
        owned = (self.memory, self.pinned, self.streams, self.events, self.graphs, self.executables)
        return sum(map(len, owned)) + self.taken

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (*OK, 1) if self.present else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetErrorString(self, error: int) -> tuple[Any, ...]:
        return *OK, f"the text of {int(error)}".encode()

    @call()
    def cudaGetLastError(self) -> None: ...

    @call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        assert flags == self.cudaStreamNonBlocking
        return self._kept(self.streams)

    @call()
    def cudaStreamDestroy(self, stream: Handle) -> None:
        assert not stream.work
        self.streams.remove(stream)

    @call()
    def cudaStreamSynchronize(self, stream: Handle) -> None:
        assert self._captured is None
        work, stream.work = stream.work, []
        for each in work:
            each()

    @call(1)
    def cudaMalloc(self, size: int) -> int:
        address, self._next_address = self._next_address, self._next_address + size + 4096
        self.memory[address] = (ctypes.c_ubyte * size)()
        ctypes.memset(self.memory[address], 0xCD, size)
        return address

    @call()
    def cudaFree(self, devPtr: int) -> None:
        self._idle()
        del self.memory[devPtr]

    @call(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        assert flags == self.cudaHostAllocDefault
        buffer = (ctypes.c_ubyte * size)()
        self.pinned[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    @call()
    def cudaFreeHost(self, ptr: int) -> None:
        self._idle()
        ctypes.memset(ptr, 0xEE, len(self.pinned[ptr]))  # whoever still reads it must not find what was there
        del self.pinned[ptr]

    @call()
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: Handle) -> None:
        entering = cudaMemcpyKind(kind) is cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (src, dst) if entering else (dst, src)

        def copy() -> None:
            inside, outside = self.at(device, count), self._pinned_at(host, count)
            ctypes.memmove(*((inside, outside) if entering else (outside, inside)), count)

        self.put(stream, copy, COPY_MS)

    @call(1)
    def cudaEventCreate(self) -> Handle:
        return self._kept(self.events)

    @call()
    def cudaEventDestroy(self, event: Handle) -> None:
        self.events.remove(event)

    @call()
    def cudaEventRecord(self, event: Handle, stream: Handle) -> None:
        assert event in self.events
        event.time = None
        self.put(stream, lambda: setattr(event, "time", self._clock), 0)

    @call(1)
    def cudaEventElapsedTime(self, start: Handle, end: Handle) -> float:
        assert start.time is not None
        assert end.time is not None, "asked before the stream came that far"
        return end.time - start.time

    @call(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return TOTAL - sum(map(len, self.memory.values())) - self.taken, TOTAL

    @call()
    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> None:
        assert isinstance(mode, cudaStreamCaptureMode)
        self._captured, self._capture_broken = Handle(), False

    @call(1)
    def cudaStreamEndCapture(self, stream: Handle) -> Any:
        graph, self._captured = self._captured, None
        if self._capture_broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated
        assert graph is not None
        self.graphs.add(graph)
        return graph

    @call(1)
    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> Handle:
        assert (graph in self.graphs, flags) == (True, 0)
        executable = self._kept(self.executables)
        executable.work = list(graph.work)
        return executable

    @call()
    def cudaGraphLaunch(self, graphExec: Handle, stream: Handle) -> None:
        assert graphExec in self.executables
        stream.work += graphExec.work

    @call()
    def cudaGraphDestroy(self, graph: Handle) -> None:
        self.graphs.remove(graph)

    @call()
    def cudaGraphExecDestroy(self, graphExec: Handle) -> None:
        self._idle()
        self.executables.remove(graphExec)

    # What the stand-in of TensorRT and the tests need besides.

    def at(self, address: int, count: int) -> int:
        """Where in this process the bytes of a device's address are."""
        return self._within(self.memory, address, count)

    def put(self, stream: Handle | int, work: Work, milliseconds: float) -> None:
        """Onto a stream, or into what is captured from it."""

        def timed() -> None:
            self._clock += milliseconds
            work()

        (target,) = [each for each in self.streams if int(each) == int(stream)]
        (self._captured or target).work.append(timed)

    @property
    def capturing(self) -> bool:
        return self._captured is not None

    def break_capture(self) -> None:
        self._capture_broken = True

    def _pinned_at(self, address: int, count: int) -> int:
        return self._within(self.pinned, address, count)

    def _within(self, owned: dict[int, Any], address: int, count: int) -> int:
        for start, buffer in owned.items():
            if start <= address and address + count <= start + len(buffer):
                return ctypes.addressof(buffer) + address - start
        raise AssertionError(f"{count} bytes at {address:#x} belong to nobody here")

    def _kept(self, owned: set[Handle]) -> Handle:
        handle = Handle()
        owned.add(handle)
        return handle

    def _idle(self) -> None:
        assert not any(stream.work for stream in self.streams), "taken away from under the device"
