"""int8 files of all families: where Q/DQ sits, what takes the files, and that they are the same each time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from frs.detectors import Detector
from frs.edge.ort import OnnxRuntimeSession
from frs.export.engine import build_engine
from frs.export.layers import find_layers
from frs.export.onnx import export_onnx, read_metadata
from frs.evaluation.parity import parity
from frs.export.quantize import HALF_OPSET, calibrate, quantize
from tests.frs.detectors.two_stage import busy as busy_faster_rcnn
from tests.frs.export.lab import busy_detector, busy_gfl, pictures
from tests.frs.export.test_engine import rtx

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(4, HEIGHT, WIDTH)
FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")
SOURCE = {"int8": "fp32", "int8+fp16": "fp16", "int8-cpu": "fp32"}


def detector(family: str) -> Detector:
    if family == "faster_rcnn":
        return busy_faster_rcnn(IMAGES)
    if family == "gfl":
        return busy_gfl(IMAGES, boxes=20)
    norm = {"head_norm": "group"} if family == "retinanet" else {}
    return busy_detector(IMAGES, family=family, boxes=20, **norm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, folder: Path) -> str:
    """Its two floating-point files lie in the folder: RetinaNet's with the batch open."""
    name: str = request.param
    made = detector(name)
    for precision in ("fp32", "fp16"):
        target = folder / f"{name}.{precision}.onnx"
        batch = None if name == "retinanet" else 1
        export_onnx(
            made,
            target,
            height=HEIGHT,
            width=WIDTH,
            batch=batch,
            precision=precision,
            candidates=100,
            proposals=40,
            rounds=2,
        )
    return name


def made(family: str, precision: str, folder: Path) -> tuple[Path, Path]:
    """The source and its int8 file."""
    source, target = folder / f"{family}.{SOURCE[precision]}.onnx", folder / f"{family}.{precision}.onnx"
    ranges = calibrate(source, IMAGES[:, None], threads=1)
    quantize(source, target, ranges, precision=precision)
    return source, target


def surroundings(model: Any, node: Any) -> tuple[Any, Any, Any, bool]:
    """Of a layer's node: Q of its input, DQ of its weight, of its bias or None, and whether Q follows its output."""
    makers = {output: other for other in model.graph.node for output in other.output}
    readers = [other.op_type for other in model.graph.node if node.output[0] in other.input]
    dequantize = makers[node.input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    bias = makers.get(node.input[2]) if len(node.input) > 2 else None
    return makers[dequantize.input[0]], makers[node.input[1]], bias, readers == ["QuantizeLinear"]


def test_the_layers_are_those_of_the_detector(family: str, folder: Path) -> None:
    """All its convolutions and linear layers, by the paths of their modules."""
    from torch import nn

    modules = {name for name, module in detector(family).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    found = {layer.name for layer in find_layers(onnx.load(folder / f"{family}.fp16.onnx"))}
    assert found == modules


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_for_tensorrt(family: str, precision: str, folder: Path) -> None:
    """Symmetric Q/DQ on the input of each layer and nothing behind it that was not another's input; a scale a channel."""
    source, target = made(family, precision, folder)
    model = onnx.load(target)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    kind = np.float16 if precision == "int8+fp16" else np.float32
    nodes = {node.name: node for node in model.graph.node}
    for layer in find_layers(onnx.load(source)):
        for name in layer.nodes:
            quantize_input, weight, bias, _ = surroundings(model, nodes[name])
            assert bias is None
            scale, zero = (tensors[each] for each in quantize_input.input[1:])
            assert (scale.dtype, scale.shape, zero.dtype, int(zero)) == (kind, (), np.int8, 0)
            values, scales, zeros = (tensors[each] for each in weight.input)
            original = before[f"detector.{layer.name}.weight"].astype(np.float64)
            extent = np.abs(original.reshape(len(original), -1)).max(axis=1)
            assert (values.dtype, scales.dtype, zeros.any()) == (np.int8, kind, False)
            np.testing.assert_allclose(scales, extent / 127, rtol=2e-3)
            steps = scales.astype(np.float64).reshape(-1, *[1] * (original.ndim - 1))
            assert np.abs(values * steps - original).max() <= 0.51 * steps.max() + 1e-3 * extent.max()
    assert {entry.version for entry in model.opset_import} == {HALF_OPSET if kind is np.float16 else 18}


@rtx
@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_tensorrt_builds_it(family: str, precision: str, folder: Path) -> None:
    _, target = made(family, precision, folder)
    report = build_engine(target, folder / "x.plan", target="sm_86")
    assert (report.proven, report.message) == ("planned", None)


def test_for_cpus(family: str, folder: Path) -> None:
    """Unsigned activations, weights with a scale a channel, int32 biases, and Q behind every layer; no ReLU is left between."""
    source, target = made(family, "int8-cpu", folder)
    model = onnx.load(target)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    shifted = set()
    for layer in find_layers(onnx.load(source)):
        for name in layer.nodes:
            quantize_input, weight, bias, follows = surroundings(model, nodes[name])
            zero = tensors[quantize_input.input[2]]
            assert (zero.dtype, follows) == (np.uint8, True)
            shifted.add(int(zero))
            assert (tensors[weight.input[0]].dtype, tensors[weight.input[2]].any()) == (np.int8, False)
            assert tensors[weight.input[1]].ndim == 1
            assert (bias is None) == (len(nodes[name].input) < 3)
            if bias is not None:
                assert tensors[bias.input[0]].dtype == np.int32
    assert 0 in shifted  # behind a ReLU
    assert len(shifted) > 1


@pytest.mark.parametrize(("precision", "unmatched"), [("int8", 0.15), ("int8+fp16", 0.15), ("int8-cpu", 0.15)])
def test_onnx_runtime_runs_it(family: str, precision: str, unmatched: float, folder: Path) -> None:
    """Random weights are the hardest case: most boxes are found again all the same."""
    source, target = made(family, precision, folder)
    file = OnnxRuntimeSession(target, threads=1)
    assert file.metadata.precision == precision
    assert file.batch == (None if family == "retinanet" else 1)
    assert read_metadata(target).classes == read_metadata(source).classes
    batches = [IMAGES] if file.batch is None else list(IMAGES[:, None])
    measured = parity(OnnxRuntimeSession(source, threads=1), file, batches)
    assert measured.boxes >= 80
    assert 0 < measured.unmatched <= unmatched


@pytest.fixture(scope="module")
def retinanet(folder: Path) -> Path:
    """A small fp32 file, of a batch of one."""
    target = folder / "one.onnx"
    export_onnx(detector("retinanet"), target, height=HEIGHT, width=WIDTH, candidates=100, rounds=2)
    return target


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_what_is_kept_is_as_it_was(retinanet: Path, precision: str, folder: Path) -> None:
    ranges, target = calibrate(retinanet, IMAGES[:, None]), folder / "kept.onnx"
    keep = {"class_tower.0", "backbone.body.conv1", "fpn.lateral.1"}
    quantize(retinanet, target, ranges, precision=precision, keep=keep)
    before, after = ({node.name: node for node in onnx.load(path).graph.node} for path in (retinanet, target))
    for layer in find_layers(onnx.load(retinanet)):
        for name in layer.nodes:
            floating = after[name].input[1] == before[name].input[1]
            assert floating == (layer.name in keep)
            if floating and precision == "int8":  # the pyramid's level is quantised for the other tower only
                assert list(after[name].input) == list(before[name].input)


def test_with_everything_kept_the_file_is_its_source(retinanet: Path, folder: Path) -> None:
    target, names = folder / "all.onnx", [layer.name for layer in find_layers(onnx.load(retinanet))]
    quantize(retinanet, target, calibrate(retinanet, IMAGES[:, None]), precision="int8", keep=names)
    model, source = onnx.load(target), onnx.load(retinanet)
    assert model.graph == source.graph
    assert read_metadata(target).precision == "int8"


def test_the_same_bytes_in_any_process_and_no_path(retinanet: Path, folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import numpy as np; from frs.export.quantize import calibrate, quantize\n"
        "source, images, precision, target = sys.argv[1:]\n"
        "ranges = calibrate(Path(source), np.load(images)[:, None], threads=1)\n"
        "quantize(Path(source), Path(target), ranges, precision=precision)"
    )
    np.save(folder / "images.npy", IMAGES)
    for precision in ("int8", "int8-cpu"):
        hashes = set()
        for seed in ("1", "2"):
            target = folder / "again.onnx"
            command = [sys.executable, "-c", script, retinanet, folder / "images.npy", precision, target]
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            subprocess.run(list(map(str, command)), check=True, env=environment)
            data = target.read_bytes()
            assert str(folder).encode() not in data
            assert b"onnx.quant" not in data
            hashes.add(hashlib.sha256(data).hexdigest())
        assert len(hashes) == 1


def test_the_smallest_weights_of_a_float16_graph_are_not_lost(folder: Path) -> None:
    """A channel whose scale is no normal float16 number: below 127 * 6.1e-5."""
    small = detector("retinanet")
    layer: Any = small.get_submodule("fpn.output.0")
    layer.weight.data[3] = 1e-3 * layer.weight.data[3] / layer.weight.data[3].abs().max()
    source, target = folder / "tiny.onnx", folder / "tiny.int8.onnx"
    export_onnx(small, source, height=HEIGHT, width=WIDTH, precision="fp16", candidates=100, rounds=2)
    quantize(source, target, calibrate(source, IMAGES[:1, None]), precision="int8+fp16")
    tensors = {tensor.name: tensor for tensor in onnx.load(target).graph.initializer}
    values = numpy_helper.to_array(tensors["detector.fpn.output.0.weight_quantized"])[3]
    scale = numpy_helper.to_array(tensors["detector.fpn.output.0.weight_scale"])[3]
    assert tensors["detector.fpn.output.0.weight_scale"].data_type == TensorProto.FLOAT16
    assert np.abs(values.astype(int)).max() >= 126
    np.testing.assert_allclose(float(scale), 1e-3 / 127, rtol=0.01)
