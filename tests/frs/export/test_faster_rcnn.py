"""Faster R-CNN as an exported file: ONNX Runtime and TensorRT-RTX against torch. Four exports."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from frs.detectors import FasterRCNN
from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation.parity import Parity, parity
from frs.export.engine import build_engine
from frs.export.graph import DeployedDetector
from frs.export.onnx import export_onnx
from frs.export.torch_predictor import TorchPredictor
from tests.frs.detectors.two_stage import V2, busy
from tests.frs.export.lab import pictures
from tests.frs.export.quantised import PRECISIONS, check_int8
from tests.frs.export.test_engine import rtx

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(3, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return busy(IMAGES)


@pytest.fixture(scope="module")
def exported(detector: FasterRCNN, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "fp16"):
        export_onnx(detector, folder / f"{precision}.onnx", height=HEIGHT, width=WIDTH, batch=None, precision=precision)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def second_version(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path]:
    """torchvision's, with convolutions and BatchNorm in the second stage; 80 proposals."""
    made, path = busy(IMAGES, conventions="torchvision", **V2), tmp_path_factory.mktemp("exported") / "v2.onnx"
    export_onnx(made, path, height=HEIGHT, width=WIDTH, batch=3, proposals=80)
    return made, path


def compare(torch_side: TorchPredictor, file: Path) -> Parity:
    measured = parity(torch_side, OnnxRuntimeSession(file), [IMAGES])
    assert measured.boxes >= 50 * len(IMAGES)
    return measured


def assert_the_same(measured: Parity) -> None:
    assert measured.unmatched == 0
    assert measured.score_max is not None
    assert measured.score_max < 1e-4
    assert measured.box_max is not None
    assert measured.box_max < 0.05


def test_fp32_is_torch(detector: FasterRCNN, exported: dict[str, Path]) -> None:
    assert_the_same(compare(TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), exported["fp32"]))


def test_fp16_is_near_torch(detector: FasterRCNN, exported: dict[str, Path]) -> None:
    measured = compare(TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), exported["fp16"])
    assert measured.unmatched <= 0.03
    assert measured.score_p95 is not None
    assert 1e-6 < measured.score_p95 <= 0.01
    assert measured.box_p95 is not None
    assert measured.box_p95 <= 1.0


def test_the_second_version_is_torch_too(second_version: tuple[FasterRCNN, Path]) -> None:
    made, path = second_version
    assert_the_same(compare(TorchPredictor(made, HEIGHT, WIDTH, decode="graph", proposals=80), path))


def test_the_second_stage_looks_at_as_many_boxes_as_asked_for(second_version: tuple[FasterRCNN, Path]) -> None:
    made, path = second_version
    graph = DeployedDetector(made, proposals=80)
    assert (graph.detector.proposals, made.proposals) == (80, 300)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    (sampled,) = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert shapes[sampled.output[0]] == [3, 32, 80 * 14, 14]
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert shapes[softmax.output[0]] == [3 * 80, 4]


def test_operators_are_those_of_the_standard(exported: dict[str, Path]) -> None:
    """One bilinear GridSample, in the naming of opset 18, over all levels and boxes, and in float32 in either file."""
    for path in exported.values():
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"RoiAlign", "NonZero", "NonMaxSuppression", "Loop", "If", "Scan", "ScatterND"}
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        (node,) = [node for node in model.graph.node if node.op_type == "GridSample"]
        assert {a.name: a.s or a.i for a in node.attribute} == {
            "align_corners": 1,
            "mode": b"bilinear",
            "padding_mode": b"border",
        }
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        assert {kinds[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT}


def test_fp16_holds_half_weights(exported: dict[str, Path]) -> None:
    kinds = {
        tensor.data_type
        for tensor in onnx.load(exported["fp16"]).graph.initializer
        if (len(tensor.dims) == 4 and tensor.dims[0] > 1) or 32 * 49 in tensor.dims
    }
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert exported["fp16"].stat().st_size < 0.65 * exported["fp32"].stat().st_size


def test_each_image_is_answered_alone(exported: dict[str, Path]) -> None:
    session = OnnxRuntimeSession(exported["fp32"])
    for i, expected in enumerate(session.predict(IMAGES)):
        alone = session.predict(IMAGES[i : i + 1])[0]
        torch.testing.assert_close(torch.from_numpy(alone.boxes), torch.from_numpy(expected.boxes), atol=1e-2, rtol=0)


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_builds_it(precision: str, exported: dict[str, Path], tmp_path: Path) -> None:
    report = build_engine(exported[precision], tmp_path / "x.plan", properties={}, target="sm_86")
    assert (report.proven, report.message) == ("planned", None)


@rtx
def test_tensorrt_builds_the_second_version(second_version: tuple[FasterRCNN, Path], tmp_path: Path) -> None:
    report = build_engine(second_version[1], tmp_path / "x.plan", properties={}, target="sm_86")
    assert (report.proven, report.message) == ("planned", None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int8(detector: FasterRCNN, exported: dict[str, Path], precision: str, tmp_path: Path) -> None:
    check_int8(detector, exported, IMAGES, precision, tmp_path)
