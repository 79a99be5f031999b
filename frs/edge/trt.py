"""A TensorRT plan in the library that built it: TensorRT 10 or 11, or TensorRT-RTX.

By the API that all of them have: tensors known by name, `execute_async_v3`, no bindings.
"""

from __future__ import annotations

import hashlib
import importlib
import weakref
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from frs.edge.cuda import CudaStream
from frs.edge.machine import find_gpu
from frs.edge.metadata import GraphMetadata
from frs.edge.predictor import OUTPUTS, Detections, ModelInfo, Split, check_images, detections
from frs.edge.sidecar import REBUILD, Sidecar, refusal
from frs.errors import EngineError, RuntimeMissing

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_TYPES = {"UINT8": np.uint8, "FLOAT": np.float32, "INT32": np.int32}


class TensorRTSession:
    """A Predictor for a plan that this project built; not for several threads at once.

    cuda_graph: launch the inference as one CUDA graph, captured anew whenever the batch changes. Raises EngineError for a
    plan that is not ours, was built for another machine (with the reason and the command that rebuilds it) or does not
    open, ExportError for metadata that cannot be used, and RuntimeMissing where its library, cuda-bindings or a GPU is not
    there.
    """

    def __init__(self, path: Path, *, cuda_graph: bool = False) -> None:
        sidecar = Sidecar.of(path)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from None
        trt = _library(path, sidecar)
        gpu, sha256 = find_gpu(), hashlib.sha256(plan).hexdigest()
        refused = refusal(sidecar, library=trt.__name__, version=trt.__version__, gpu=gpu, plan_sha256=sha256)
        if refused is not None:
            raise EngineError(f"{path}: {refused}")
        self.path = path
        self.metadata = GraphMetadata.from_properties(sidecar.properties, path)
        self.provider = f"{trt.__name__} {trt.__version__}"
        self._execution = _Execution(path, plan, trt, self.metadata, cuda_graph)
        self.batch = self._execution.batch
        # Also for a session that is only forgotten, and at the interpreter's end, while CUDA is still there.
        self._close = weakref.finalize(self, self._execution.close)

    @property
    def info(self) -> ModelInfo:
        return self.metadata.info

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the greatest batch that the plan was built for."""
        return self._execution.least, self._execution.greatest

    @property
    def device_memory_mb(self) -> float:
        """What the device has less since this session began to open: weights, activations and buffers, and what other
        programs took meanwhile. On a Jetson it is a part of the board's one memory."""
        return self._execution.device_memory_mb

    @property
    def cuda_graph(self) -> bool:
        """Whether the last run was a CUDA graph; if it was to be one and was not, `cuda_graph_error` says why."""
        return self._execution.graph is not None

    @property
    def cuda_graph_error(self) -> str | None:
        return self._execution.graph_error

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        """images: (N, 3, height, width) uint8, N as built. Raises ExportError for anything else."""
        check_images(self.path, images, self.info, self.batch)
        return detections(self.path, self.run_raw(images), self.info)

    def run_raw(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """The plan alone: boxes, scores, labels and num_detections, padded. Raises EngineError where it does not run."""
        return self.run_split(images)[0]

    def run_split(self, images: npt.NDArray[np.uint8]) -> tuple[list[npt.NDArray[Any]], Split]:
        """The same, timed. The device waits for nobody between copies and inference: their parts are told by its events, and
        `infer` is what remains of the whole, with the launching and the waiting."""
        if not self._close.alive:  # its pinned memory is no longer ours to write to
            raise EngineError(f"{self.path}: the session was closed; open the plan again")
        return self._execution.run(images)

    def close(self) -> None:
        """Give the device's and the pinned memory back; the session cannot be used any more."""
        self._close()

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Execution:
    """What is on the device: engine and context, and buffers for the greatest batch, made once.

    A Jetson's GPU could read pinned memory of the host in place. The copies stay there too: its GPU does not cache that memory,
    an image is copied in microseconds, and one path is the same everywhere.
    """

    batch: int | None
    least: int
    greatest: int
    graph: Any
    _runtime: Any
    _engine: Any
    _context: Any

    def __init__(self, path: Path, plan: bytes, trt: Any, metadata: GraphMetadata, cuda_graph: bool) -> None:
        self._path, self._wants_graph = path, cuda_graph
        self._chosen: int | None = None
        self._runtime = self._engine = self._context = self.graph = None
        self.graph_error: str | None = None
        self._cuda = CudaStream()
        try:
            self._free_before = self._cuda.free_memory()
            self._log = _logger(trt)
            self._runtime = trt.Runtime(self._log)
            self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), "deserialise it")
            shapes = self._check_tensors(metadata)
            self._host = {name: self._cuda.pinned(shape, dtype) for name, (shape, dtype) in shapes.items()}
            self._device = {name: self._cuda.allocate(array.nbytes) for name, array in self._host.items()}
            self._events = [self._cuda.event() for _ in range(4)]
            self._context = self._made(self._engine.create_execution_context(), "make room for running it")
            for name, address in self._device.items():
                self._made(self._context.set_tensor_address(name, address), f"use a buffer for {name}")
        except BaseException:
            self.close()
            raise

    @property
    def device_memory_mb(self) -> float:
        return round((self._free_before - self._cuda.free_memory()) / 1e6, 1)

    def run(self, images: npt.NDArray[np.uint8]) -> tuple[list[npt.NDArray[Any]], Split]:
        cuda, n = self._cuda, len(images)
        if n != self._chosen:
            self._choose(n)
        start = perf_counter_ns()
        np.copyto(self._host["images"][:n], images)
        staged = perf_counter_ns()
        cuda.record(self._events[0])
        cuda.copy_in(self._device["images"], self._host["images"][:n])
        cuda.record(self._events[1])
        self._infer()
        cuda.record(self._events[2])
        for name in OUTPUTS:
            cuda.copy_out(self._host[name][:n], self._device[name])
        cuda.record(self._events[3])
        cuda.synchronise()
        done = perf_counter_ns()
        outputs = [self._host[name][:n].copy() for name in OUTPUTS]  # pinned memory is gone after `close`
        end = perf_counter_ns()
        entering, gpu, leaving = (cuda.elapsed_ns(*self._events[i : i + 2]) for i in range(3))
        return outputs, Split(
            copy_in=staged - start + entering,
            infer=done - staged - entering - leaving,
            copy_out=leaving + end - done,
            gpu=gpu,
        )

    def close(self) -> None:
        """In the reverse of the order in which they were made, and nothing while the device may be at work on it."""
        self._cuda.settle()
        self._drop_graph()
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _choose(self, n: int) -> None:
        """Turn to batches of n."""
        if not self.least <= n <= self.greatest:
            raise EngineError(
                f"{self._path}: built for batches of {self.least} to {self.greatest}, got {n}; give it one of those, or "
                "build it for others"
            )
        self._chosen = None  # until all is well
        self._drop_graph()
        shape = (n, *self._host["images"].shape[1:])
        self._made(self._context.set_input_shape("images", shape), f"take a batch of {n}")
        if self._wants_graph:
            self._infer()  # what the library does at its first run only, it must not do while it is captured
            self._cuda.synchronise()
            try:
                self.graph = self._cuda.capture(self._context.execute_async_v3)
                self.graph_error = None
            except EngineError as error:
                self.graph_error = f"{error} ({self._log.first_error()})"
        self._chosen = n

    def _infer(self) -> None:
        if self.graph is not None:
            self._cuda.launch(self.graph)
        else:
            self._made(self._context.execute_async_v3(int(self._cuda.handle)), "run it")

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self._cuda.destroy(self.graph)
            self.graph = None

    def _made(self, result: Any, what: str) -> Any:
        """TensorRT answers None or False where it fails, and tells its logger why."""
        if result is None or result is False:
            raise EngineError(f"{self._path}: TensorRT cannot {what} ({self._log.first_error()}); {REBUILD}")
        return result

    def _check_tensors(self, metadata: GraphMetadata) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape, of the greatest batch, and dtype of every tensor. Raises EngineError unless they are as the metadata say."""
        engine = self._engine
        found = {}
        batches = set()
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            batch, *shape = engine.get_tensor_shape(name)
            batches.add(batch)
            found[name] = (engine.get_tensor_mode(name).name, engine.get_tensor_dtype(name).name, tuple(shape))
        expected = {
            "images": ("INPUT", "UINT8", (3, metadata.height, metadata.width)),
            "boxes": ("OUTPUT", "FLOAT", (metadata.detections, 4)),
            "scores": ("OUTPUT", "FLOAT", (metadata.detections,)),
            "labels": ("OUTPUT", "INT32", (metadata.detections,)),
            "num_detections": ("OUTPUT", "INT32", ()),
        }
        if found != expected or len(batches) != 1:
            raise EngineError(
                f"{self._path}: its sidecar promises the tensors {expected}, each after one batch, the plan has {found} "
                f"after batches {sorted(batches)}; {REBUILD}"
            )
        self.batch = None if batches == {-1} else batches.pop()
        if self.batch is None:
            least, _, greatest = engine.get_tensor_profile_shape("images", 0)
            self.least, self.greatest = least[0], greatest[0]
        else:
            self.least = self.greatest = self.batch
        return {name: ((self.greatest, *shape), _TYPES[kind]) for name, (_, kind, shape) in expected.items()}


def _library(path: Path, sidecar: Sidecar) -> Any:
    """The module that built the plan."""
    if sidecar.builder not in LIBRARIES:
        raise EngineError(f"{path}: built by {sidecar.builder!r}, which is none of {', '.join(LIBRARIES)}; {REBUILD}")
    try:
        return importlib.import_module(sidecar.builder)
    except (ImportError, OSError) as error:  # OSError: the bindings are there, a library that they load is not
        raise RuntimeMissing(
            f"{path}: {sidecar.builder} {sidecar.version} built it and cannot be imported here ({error}); on a Jetson it "
            "is the system's: make the virtual environment with --system-site-packages"
        ) from None


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(message[:500])

        def first_error(self) -> str:
            """Since it was last asked: those that follow it are consequences."""
            errors, self._errors = self._errors, []
            return errors[0] if errors else "it does not say why"

    return Logger()
