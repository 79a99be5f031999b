"""What an int8 file of any family must be; the exported files come from the family's own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from torch import nn

from frs.detectors import Detector
from frs.edge.ort import OnnxRuntimeSession
from frs.export.engine import build_engine
from frs.export.layers import find_layers
from frs.export.onnx import read_metadata
from frs.export.parity import parity
from frs.export.quantize import HALF_OPSET, calibrate, quantize
from tests.frs.export.test_engine import has_rtx

PRECISIONS = {"int8": "fp32", "int8+fp16": "fp16", "int8-cpu": "fp32"}


def check_int8(
    detector: Detector, exported: dict[str, Path], images: npt.NDArray[np.uint8], precision: str, folder: Path
) -> None:
    """Q/DQ around every layer where its runtime wants it; ONNX Runtime finds most boxes again, and TensorRT-RTX builds it.

    exported: "fp32" and "fp16" with an open batch.
    """
    source, target = exported[PRECISIONS[precision]], folder / f"{precision}.onnx"
    layers = find_layers(onnx.load(source))
    modules = {name for name, module in detector.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {layer.name for layer in layers} == modules
    quantize(source, target, calibrate(source, [images], threads=1), precision=precision)
    if precision == "int8-cpu":
        _check_for_cpus(source, target)
    else:
        _check_for_tensorrt(source, target, half=precision == "int8+fp16")
        if has_rtx():
            report = build_engine(
                target, folder / "x.plan", properties=read_metadata(target).to_properties(), target="sm_86"
            )
            assert (report.proven, report.message) == ("planned", None)
    session = OnnxRuntimeSession(target, threads=1)
    assert session.metadata.precision == precision
    assert session.batch is None
    assert read_metadata(target).classes == read_metadata(source).classes
    measured = parity(OnnxRuntimeSession(source, threads=1), session, [images])
    # Random weights damp no noise: of a trained network nearly all are found again. Of another network none would be.
    assert measured.boxes >= 50
    assert 0 < measured.unmatched < 0.5


def surroundings(model: Any, node: Any) -> tuple[Any, Any, Any, bool]:
    """Of a layer's node: Q of its input, DQ of its weight, of its bias or None, and whether Q follows its output."""
    makers = {output: other for other in model.graph.node for output in other.output}
    readers = [other.op_type for other in model.graph.node if node.output[0] in other.input]
    dequantize = makers[node.input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    bias = makers.get(node.input[2]) if len(node.input) > 2 else None
    return makers[dequantize.input[0]], makers[node.input[1]], bias, readers == ["QuantizeLinear"]


def _check_for_tensorrt(source: Path, target: Path, *, half: bool) -> None:
    """Symmetric Q/DQ on the input of each layer, weights with a scale for each channel, biases left alone."""
    model = onnx.load(target)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    kind = np.float16 if half else np.float32
    nodes = {node.name: node for node in model.graph.node}
    for layer in find_layers(onnx.load(source)):
        original = before[f"detector.{layer.name}.weight"].astype(np.float64)
        extent = np.abs(original.reshape(len(original), -1)).max(axis=1)
        for name in layer.nodes:
            quantize_input, weight, bias, _ = surroundings(model, nodes[name])
            assert bias is None
            scale, zero = (tensors[each] for each in quantize_input.input[1:])
            assert (scale.dtype, scale.shape, zero.dtype, int(zero)) == (kind, (), np.int8, 0)
            values, scales, zeros = (tensors[each] for each in weight.input)
            assert (values.dtype, scales.dtype, zeros.any()) == (np.int8, kind, False)
            np.testing.assert_allclose(scales, extent / 127, rtol=2e-3)
            steps = (extent / 127).reshape(-1, *[1] * (original.ndim - 1))
            assert (np.abs(values - original / steps) < 0.8).all()  # a float16 scale is off by 1e-3 of 127
    assert {entry.version for entry in model.opset_import} == {HALF_OPSET if half else 18}
    # None on an output for its own sake: whatever is quantised is some layer's input.
    inputs = {
        surroundings(model, nodes[name])[0].name for layer in find_layers(onnx.load(source)) for name in layer.nodes
    }
    assert {node.name for node in model.graph.node if node.op_type == "QuantizeLinear"} == inputs


def _check_for_cpus(source: Path, target: Path) -> None:
    """Unsigned activations, int32 biases, and Q behind every layer: no ReLU is left between."""
    model = onnx.load(target)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    zeros = set()
    for layer in find_layers(onnx.load(source)):
        for name in layer.nodes:
            quantize_input, weight, bias, follows = surroundings(model, nodes[name])
            zero = tensors[quantize_input.input[2]]
            assert (zero.dtype, follows) == (np.uint8, True)
            zeros.add(int(zero))
            assert (tensors[weight.input[0]].dtype, tensors[weight.input[2]].any()) == (np.int8, False)
            assert tensors[weight.input[1]].shape == tensors[weight.input[0]].shape[:1]
            assert (bias is None) == (len(nodes[name].input) < 3)
            if bias is not None:
                assert tensors[bias.input[0]].dtype == np.int32
    assert 0 in zeros  # behind a ReLU
    assert len(zeros) > 1
