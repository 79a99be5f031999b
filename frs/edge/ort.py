"""An exported file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from frs.edge.metadata import GraphMetadata
from frs.edge.predictor import OUTPUTS, Detections, ModelInfo, Split, check_images, detections
from frs.errors import ExportError, RuntimeMissing

CPU = "CPUExecutionProvider"
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)
"""It brings the float biases between Q/DQ to int32, in a float16 graph by float16 arithmetic: what exceeds 65504 steps becomes
infinite, and is lost. (Seen with 1.32: 13 AP of a detector as int8+fp16.)"""
_TYPES = ("tensor(float)", "tensor(float)", "tensor(int32)", "tensor(int32)")


class OnnxRuntimeSession:
    """A Predictor for a file that this project exported.

    providers: in order of preference; the first must be the one that runs. threads: of one operator; None leaves it to
    ONNX Runtime, which takes every core. Raises RuntimeMissing where ONNX Runtime or the provider is not there, and
    ExportError for a file that is not ours.
    """

    def __init__(self, path: Path, providers: Sequence[str] = (CPU,), threads: int | None = None) -> None:
        self.session = _open(path, providers, threads)
        # ONNX Runtime drops a provider that it cannot load, and says nothing.
        self.provider: str = self.session.get_providers()[0]
        if self.provider != providers[0]:
            raise RuntimeMissing(
                f"{path}: asked to run on {providers[0]}, ONNX Runtime fell back to {self.provider}; install what the "
                "provider needs (CUDA libraries, onnxruntime-gpu), or ask for another"
            )
        self.metadata = GraphMetadata.from_properties(self.session.get_modelmeta().custom_metadata_map, path)
        self.path = path
        self.batch = self._check_graph()
        self.device_memory_mb: float | None = None  # ONNX Runtime does not tell it

    @property
    def info(self) -> ModelInfo:
        return self.metadata.info

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        """images: (N, 3, height, width) uint8, N as exported. Raises ExportError for anything else."""
        check_images(self.path, images, self.info, self.batch)
        try:
            outputs = self.run_raw(images)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(
                f"{self.path}: ONNX Runtime cannot run it ({_first_line(error)}); export it again"
            ) from None
        return detections(self.path, outputs, self.info)

    def run_raw(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """The graph alone, for timing: boxes, scores, labels and num_detections, padded."""
        outputs: list[npt.NDArray[Any]] = self.session.run(list(OUTPUTS), {"images": images})
        return outputs

    def run_split(self, images: npt.NDArray[np.uint8]) -> tuple[list[npt.NDArray[Any]], Split]:
        """The same, timed: what another provider than the CPU's copies is part of `infer`, ONNX Runtime does not tell it."""
        start = perf_counter_ns()
        outputs = self.run_raw(images)
        return outputs, Split(copy_in=None, infer=perf_counter_ns() - start, copy_out=None, gpu=None)

    def close(self) -> None:
        """Give the model's memory back; the session cannot be used any more."""
        self.session = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_graph(self) -> int | None:
        """The graph's batch, None where it leaves it open. Raises ExportError for a graph that is not as its metadata say."""
        inputs = [(each.name, each.type, each.shape[1:]) for each in self.session.get_inputs()]
        outputs = [(each.name, each.type) for each in self.session.get_outputs()]
        promised = list(zip(OUTPUTS, _TYPES, strict=True))
        expected = [("images", "tensor(uint8)", [3, self.info.height, self.info.width])]
        if inputs != expected or outputs != promised:
            raise ExportError(
                f"{self.path}: its metadata promise the input {expected[0]} and the outputs {_listed(promised)}, its graph "
                f"has {inputs} and {_listed(outputs)}; export it again"
            )
        batch = self.session.get_inputs()[0].shape[0]
        return batch if isinstance(batch, int) else None


def _open(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeMissing(
            "ONNX Runtime is not installed; pip install onnxruntime (or onnxruntime-gpu, never both)"
        ) from None
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file; export it, or correct the path")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a warning here is about ONNX Runtime's own choices, nothing a user can act on
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            path, options, providers=list(providers), disabled_optimizers=list(DISABLED_OPTIMIZERS)
        )
    except ValueError as error:
        raise RuntimeMissing(f"{path}: {_first_line(error)}") from None
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(
            f"{path}: ONNX Runtime cannot open it as an ONNX file ({_first_line(error)}); export it again"
        ) from None


def _listed(outputs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in outputs)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
