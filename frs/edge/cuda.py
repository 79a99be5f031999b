"""What a TensorRT session needs of CUDA: one stream with its buffers and events, and a status that is always looked at.

Through the runtime API of `cuda-bindings` 12 or 13, which are alike in all that is called here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from frs.errors import EngineError, RuntimeMissing


class CudaStream:
    """A stream of the first GPU that this process may use. Work that is put on it is done in order; `synchronise` waits.

    Raises RuntimeMissing where there is no cuda-bindings, no driver or no GPU, and EngineError for a call that CUDA refuses.
    """

    def __init__(self) -> None:
        self._cuda = _runtime()
        self._owned = ExitStack()
        self.handle = self._call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)
        self._owned.callback(self._cuda.cudaStreamDestroy, self.handle)

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the device."""
        address: int = self._call(self._cuda.cudaMalloc, size)
        self._owned.callback(self._cuda.cudaFree, address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Page-locked memory of the host: the device reads and writes it without the kernel's help. Gone after `close`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._call(self._cuda.cudaHostAlloc, size, self._cuda.cudaHostAllocDefault)
        self._owned.callback(self._cuda.cudaFreeHost, address)
        memory = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
        return memory.view(dtype).reshape(shape)

    def event(self) -> Any:
        event = self._call(self._cuda.cudaEventCreate)
        self._owned.callback(self._cuda.cudaEventDestroy, event)
        return event

    def copy_in(self, device: int, host: npt.NDArray[Any]) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync, device, host.ctypes.data, host.nbytes, kind, self.handle)

    def copy_out(self, host: npt.NDArray[Any], device: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync, host.ctypes.data, device, host.nbytes, kind, self.handle)

    def record(self, event: Any) -> None:
        self._call(self._cuda.cudaEventRecord, event, self.handle)

    def synchronise(self) -> None:
        self._call(self._cuda.cudaStreamSynchronize, self.handle)

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Between two recorded events, after `synchronise`."""
        milliseconds: float = self._call(self._cuda.cudaEventElapsedTime, start, end)
        return round(milliseconds * 1e6)

    def free_memory(self) -> int:
        """Bytes of the device that nobody has taken; of a Jetson, whose memory is one, those of the whole board."""
        free: int = self._call(self._cuda.cudaMemGetInfo)[0]
        return free

    def capture(self, enqueue: Callable[[int], bool]) -> Any:
        """What `enqueue`, handed the stream, puts on it: as a graph that `launch` takes, and nothing of it is run.

        Raises EngineError where it cannot be captured; the stream is as before.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may go on allocating
        self._call(self._cuda.cudaStreamBeginCapture, self.handle, mode)
        taken = enqueue(int(self.handle))
        try:
            graph = self._call(self._cuda.cudaStreamEndCapture, self.handle)
        except EngineError:
            self._cuda.cudaGetLastError()  # else the next one to ask, TensorRT maybe, takes it for its own
            raise
        try:
            if not taken:
                raise EngineError("the work was not put on the stream")
            return self._call(self._cuda.cudaGraphInstantiate, graph, 0)
        finally:
            self._cuda.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        self._call(self._cuda.cudaGraphLaunch, graph, self.handle)

    def destroy(self, graph: Any) -> None:
        self._call(self._cuda.cudaGraphExecDestroy, graph)

    def settle(self) -> None:
        """Wait, whatever comes of it: before memory is given back that the device may still use."""
        self._cuda.cudaStreamSynchronize(self.handle)

    def close(self) -> None:
        """Give back everything, the last first. No status counts here: after a failure, which was told when it happened, the
        device refuses every call."""
        self._owned.close()

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise EngineError(_failure(self._cuda, function.__name__, status))
        return results[0] if len(results) == 1 else results


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise RuntimeMissing(
            "cuda-bindings, by which TensorRT's buffers are made, is not installed; pip install 'frs-pipeline[device]'"
        ) from None
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess or count == 0:
        said = _text(runtime, status) if status != runtime.cudaError_t.cudaSuccess else "it counts none"
        raise RuntimeMissing(
            f"CUDA finds no GPU here ({said}); install NVIDIA's driver, give the container its GPU (--gpus all, "
            "--runtime nvidia), or run the ONNX file"
        )
    return runtime


def _failure(runtime: Any, name: str, status: Any) -> str:
    advice = (
        "close what else uses the GPU, or build the plan for smaller batches"
        if status == runtime.cudaError_t.cudaErrorMemoryAllocation
        else "open the plan again; if it stays so, look for the driver's own message in dmesg"
    )
    return f"{name}: {_text(runtime, status)}; {advice}"


def _text(runtime: Any, status: Any) -> str:
    _, text = runtime.cudaGetErrorString(status)
    return f"{text.decode(errors='replace')}, {status.name}"
