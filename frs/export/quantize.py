"""int8 variants of an exported file, with explicit quantisation (Q/DQ) around its convolutions and linear layers.

For TensorRT ("int8", "int8+fp16"): Q/DQ on the input of each layer, symmetric, zero points 0; the outputs stay in floating
point, which TensorRT quantises itself where the next reader wants int8, and which decoding needs. For ONNX Runtime on CPUs
("int8-cpu"): unsigned asymmetric activations, on outputs too, as its integer kernels want them, a ReLU behind a layer taken
into the range of its output, and biases in int32. Weights: int8, symmetric, a scale for each output channel.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from frs.edge.files import write_atomically
from frs.edge.metadata import PRODUCER, GraphMetadata
from frs.export.calibration import Ranges, observe
from frs.export.layers import OPERATORS, Layer, find_layers

HALF_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take float16; TensorRT 10 reads up to 20."""
_REMOVABLE = ("Relu", "Clip")


def calibrate(source: Path, batches: Iterable[npt.NDArray[np.uint8]], *, threads: int | None = None) -> Ranges:
    """What `quantize` must know of an exported file: the ranges of its activations on (N, 3, H, W) uint8 letterboxed
    training images, N as exported. Raises ExportError where a value is not finite."""
    model = onnx.load(source)
    layers = find_layers(model)
    return observe(model, _activations(model, layers), batches, threads)


def quantize(source: Path, target: Path, ranges: Ranges, *, precision: str, keep: Collection[str] = ()) -> None:
    """Quantise an exported file; the same file and ranges give the same bytes.

    precision: "int8" or "int8-cpu" of the fp32 file, "int8+fp16" of the fp16 file; keep: names of layers that stay as they
    are. ranges: of `calibrate` on the source.
    """
    model = quantized(onnx.load(source), ranges, precision=precision, keep=keep)
    metadata = GraphMetadata.from_properties({entry.key: entry.value for entry in model.metadata_props}, source)
    properties = {**metadata.to_properties(), "precision": f'"{precision}"'}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    model.producer_name, model.producer_version = PRODUCER, metadata.version
    onnx.checker.check_model(model, full_check=True)
    write_atomically(target, model.SerializeToString(deterministic=True))


def quantized(model: Any, ranges: Ranges, *, precision: str, keep: Collection[str] = ()) -> Any:
    """The same on a model in memory, which is used up."""
    cpu = precision == "int8-cpu"
    layers = find_layers(model)
    chosen = {name for layer in layers if layer.name not in keep for name in layer.nodes}
    if not chosen:
        return model
    model = onnx.shape_inference.infer_shapes(model)
    original = {node.name: list(node.input) for node in model.graph.node}
    half = _weight_type(model, chosen) == TensorProto.FLOAT16
    if cpu:
        chosen |= {node.name for node in _activations_behind(model, chosen)}
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if cpu else QuantType.QInt8,
            tensors_range=_tensors_data(ranges, np.float16 if half else np.float32),
            nodes_to_quantize=sorted(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=[*OPERATORS, *_REMOVABLE],
            extra_options={
                "ActivationSymmetric": not cpu,
                "WeightSymmetric": True,
                "QuantizeBias": cpu,
                "DedicatedQDQPair": not cpu,
                "OpTypesToExcludeOutputQuantization": [] if cpu else list(OPERATORS),
                "TensorQuantOverrides": _half_scales(model, ranges, chosen) if half else {},
            },
        )
        made = quantizer.quantize_model()
        quantizer.model.topological_sort()
    if not cpu:
        _spare(made, layers, keep, original)
    if half:  # in an older opset, QuantizeLinear and DequantizeLinear do not take float16
        for entry in made.opset_import:
            entry.version = max(entry.version, HALF_OPSET)
    del made.graph.value_info[:]  # of the model before, in part
    return made


def _activations(model: Any, layers: Iterable[Layer]) -> set[str]:
    """The tensors around the layers, and behind a ReLU that follows one."""
    nodes = {name for layer in layers for name in layer.nodes}
    around = {name for node in model.graph.node if node.name in nodes for name in (node.input[0], node.output[0])}
    return around | {node.output[0] for node in _activations_behind(model, nodes)}


def _activations_behind(model: Any, nodes: Collection[str]) -> list[Any]:
    outputs = {node.output[0] for node in model.graph.node if node.name in nodes}
    return [node for node in model.graph.node if node.op_type in _REMOVABLE and node.input[0] in outputs]


def _tensors_data(ranges: Ranges, kind: type[np.float16] | type[np.float32]) -> Any:
    return TensorsData(
        CalibrationMethod.MinMax,
        {name: TensorData(lowest=kind(low), highest=kind(high)) for name, (low, high) in ranges.items()},
    )


def _weight_type(model: Any, nodes: Collection[str]) -> int:
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return next(types[node.input[1]] for node in model.graph.node if node.name in nodes)


def _half_scales(model: Any, ranges: Ranges, nodes: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The scales of a float16 graph, by name of the tensor: ONNX Runtime's quantiser, in some versions, takes one below the
    least normal float16 (6e-5: a channel whose weights are all below 0.008) for nothing, and makes it 1."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = [node for node in model.graph.node if node.name in nodes]
    scales = {node.input[0]: [_scale(max(map(abs, ranges[node.input[0]])))] for node in chosen}
    for name in dict.fromkeys(node.input[1] for node in chosen):
        weight = numpy_helper.to_array(weights[name]).astype(np.float32)
        extents = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        scales[name] = [{"axis": 0, **_scale(float(extent))} for extent in extents]
    return scales


def _scale(extent: float) -> dict[str, Any]:
    scale = max(np.float16(extent / 127), np.finfo(np.float16).smallest_subnormal)
    return {"quant_type": QuantType.QInt8, "scale": np.array(scale), "zero_point": np.array(0, np.int8)}


def _spare(model: Any, layers: Iterable[Layer], keep: Collection[str], original: dict[str, list[str]]) -> None:
    """A layer that is kept reads what was there before a neighbour's Q/DQ."""
    kept = {name for layer in layers if layer.name in keep for name in layer.nodes}
    for node in model.graph.node:
        if node.name in kept:
            node.input[:] = original[node.name]


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser tells the root logger what a user cannot act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
