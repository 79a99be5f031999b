"""The ranges of a network's activations on real images, from which int8 scales are made."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from frs.edge.machine import available_cores
from frs.edge.ort import CPU
from frs.errors import ExportError

MOST_AT_ONCE = 8
"""Batches: each of them holds the activations of a whole network."""

Ranges = dict[str, tuple[float, float]]
"""Name of a tensor -> the least and the greatest value that it took."""


def observe(
    model: Any, tensors: Collection[str], batches: Iterable[npt.NDArray[np.uint8]], threads: int | None
) -> Ranges:
    """The ranges of these tensors over all batches, (N, 3, H, W) uint8, N as exported.

    The least and the greatest value, as ONNX Runtime's MinMaxCalibrater takes them, but reduced inside the graph, batch by
    batch, and without what comes after the last of the tensors: three numbers a tensor are all that is kept, the third being
    the sum, by which a NaN is known: ONNX Runtime's ReduceMin and ReduceMax see it in the first place only. Raises
    ExportError where there is no batch, or a value is not finite.
    """
    names = sorted(tensors)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for outputs in answers(_reduced(model, names), batches, threads):
        found = np.array(outputs, dtype=np.float64).reshape(len(names), 3)
        found[np.isnan(found[:, 2])] = np.nan
        # A NaN must survive, so no fmin and fmax.
        low, high = np.minimum(low, found[:, 0]), np.maximum(high, found[:, 1])
    for name, least, greatest in zip(names, low, high, strict=True):
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise ExportError(
                f"the values of {name} reach from {least} to {greatest} on the calibration images, so no int8 scale can be "
                "made of them; give at least one image, and look at the weights: they compute NaN or overflow"
            )
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def answers(
    model: Any, batches: Iterable[npt.NDArray[np.uint8]], threads: int | None
) -> Iterator[list[npt.NDArray[Any]]]:
    """All outputs of a model in memory for each batch, in their order, by ONNX Runtime on the CPU.

    threads: None for as many as this process may use. Batches run side by side, as many at a time as `share` says.
    """
    import onnxruntime

    workers, each = share(threads)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = each, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    waiting = iter(batches)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(waiting, workers)):
            yield from pool.map(lambda batch: session.run(None, {"images": batch}), some)


def share(threads: int | None) -> tuple[int, int]:
    """How many batches are computed at once, and the threads of each: one small batch alone keeps no more than one busy."""
    threads = threads or available_cores()
    workers = min(threads, MOST_AT_ONCE)
    return workers, threads // workers


def _reduced(model: Any, names: list[str]) -> Any:
    """A graph whose outputs are the least and the greatest value of each tensor and its sum, float32."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    for number, name in enumerate(names):
        made.graph.node.append(helper.make_node("Cast", [name], [f"observed/{number}"], to=TensorProto.FLOAT))
        for operator in ("ReduceMin", "ReduceMax", "ReduceSum"):
            output = f"observed/{number}/{operator}"
            made.graph.node.append(helper.make_node(operator, [f"observed/{number}"], [output], keepdims=0))
            made.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return made
