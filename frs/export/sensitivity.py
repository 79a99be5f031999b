"""How much each layer suffers when it alone is quantised: its signal-to-quantisation-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from frs.export.calibration import Ranges, answers
from frs.export.layers import find_layers
from frs.export.quantize import quantized


def sqnr(
    source: Path,
    ranges: Ranges,
    batches: Iterable[npt.NDArray[np.uint8]],
    *,
    precision: str,
    threads: int | None = None,
) -> dict[str, float | None]:
    """Name of each layer -> 10 log10(sum y^2 / sum (y - q)^2), dB, over all that it puts out; None where q is y, or y is 0.

    y: output of the layer in the source; q: of the same layer with the Q/DQ of this precision around it, on the same
    floating-point input. batches: (N, 3, H, W) uint8, N as exported; ranges: of `calibrate` on the source. Both are
    computed side by side in one graph, and summed inside it.
    """
    model = onnx.load(source)
    made, owners = _side_by_side(model, quantized(onnx.load(source), ranges, precision=precision), precision)
    signal, noise = dict.fromkeys(owners, 0.0), dict.fromkeys(owners, 0.0)
    for outputs in answers(made, batches, threads):
        sums = iter(outputs)
        for name in owners:  # a layer is there once for each of its nodes
            signal[name] += float(next(sums))
            noise[name] += float(next(sums))
    return {
        name: 10 * math.log10(signal[name] / noise[name]) if signal[name] > 0 and noise[name] > 0 else None
        for name in signal
    }


def _side_by_side(model: Any, quantized: Any, precision: str) -> tuple[Any, list[str]]:
    """The model with a quantised twin beside each layer, and as its outputs the sums y^2 and (y - q)^2 of each; with the
    name of the layer of each pair."""
    there = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for tensor in quantized.graph.initializer if tensor.name not in there)
    for entry, newer in zip(model.opset_import, quantized.opset_import, strict=True):
        entry.version = newer.version
    there |= {output for node in model.graph.node for output in node.output}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    readers = {node.input[0]: node for node in quantized.graph.node}
    twins = {node.name: node for node in quantized.graph.node}
    del model.graph.output[:]
    owners = []
    for layer in find_layers(model):
        for name in layer.nodes:
            twin, prefix = twins[name], f"{name}/twin/"
            branch = [*_upstream(twin, makers, there), twin]
            answer = twin.output[0]
            if precision == "int8-cpu":  # there the output is quantised too
                branch += [quantize := readers[answer], dequantize := readers[quantize.output[0]]]
                q = prefix + dequantize.output[0]
            else:
                q = prefix + answer
            made = {output for node in branch for output in node.output}
            model.graph.node.extend(_renamed(node, prefix, made) for node in branch)
            _sum_squares(model.graph, answer, q, f"{name}/sums/")
            owners.append(layer.name)
    return model, owners


def _upstream(node: Any, makers: dict[str, Any], there: set[str]) -> list[Any]:
    """The nodes that lead from what the model has to a node's inputs, in order: Q and DQ, of weights and a bias too."""
    found: list[Any] = []
    for name in node.input:
        if name and name not in there and name in makers:
            found += [*_upstream(makers[name], makers, there), makers[name]]
    return found


def _renamed(node: Any, prefix: str, made: set[str]) -> Any:
    """A copy whose outputs, and inputs that are outputs of its branch, carry the prefix."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name
    copy.input[:] = [prefix + name if name in made else name for name in node.input]
    copy.output[:] = [prefix + name for name in node.output]
    return copy


def _sum_squares(graph: Any, y: str, q: str, prefix: str) -> None:
    for name, tensor in (("y", y), ("q", q)):  # squares of float16 overflow
        graph.node.append(helper.make_node("Cast", [tensor], [prefix + name], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Sub", [prefix + "y", prefix + "q"], [prefix + "difference"]))
    for tensor in ("y", "difference"):
        output = f"{prefix}{tensor}^2"
        graph.node.append(helper.make_node("ReduceSumSquare", [prefix + tensor], [output], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
