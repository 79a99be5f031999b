"""GFL as an exported file: ONNX Runtime and TensorRT-RTX against torch. Three exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from frs.detectors import GFL
from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation.parity import Parity, parity
from frs.export.engine import build_engine
from frs.export.onnx import export_onnx
from frs.export.torch_predictor import TorchPredictor
from tests.frs.export.lab import busy_gfl, pictures
from tests.frs.export.quantised import PRECISIONS, check_int8
from tests.frs.export.test_engine import rtx

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(3, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def detector() -> GFL:
    return busy_gfl(IMAGES)


@pytest.fixture(scope="module")
def exported(detector: GFL, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "fp16"):
        export_onnx(detector, folder / f"{precision}.onnx", height=HEIGHT, width=WIDTH, batch=None, precision=precision)
    return {path.stem: path for path in folder.iterdir()}


def compare(detector: GFL, file: Path) -> Parity:
    torch_side = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph")
    measured = parity(torch_side, OnnxRuntimeSession(file), [IMAGES])
    assert measured.boxes >= 50 * len(IMAGES)
    return measured


def test_fp32_is_torch(detector: GFL, exported: dict[str, Path]) -> None:
    measured = compare(detector, exported["fp32"])
    assert measured.unmatched == 0
    assert measured.score_max is not None
    assert measured.score_max < 1e-4
    assert measured.box_max is not None
    assert measured.box_max < 0.05


def test_fp16_is_near_torch(detector: GFL, exported: dict[str, Path]) -> None:
    measured = compare(detector, exported["fp16"])
    assert measured.unmatched <= 0.03
    assert measured.score_p95 is not None
    assert 1e-6 < measured.score_p95 <= 0.01
    assert measured.box_p95 is not None
    assert measured.box_p95 <= 1.0


def test_the_distributions_are_summed_in_float32(exported: dict[str, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(exported["fp16"]))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert [kinds[node.output[0]] for node in softmax] == [onnx.TensorProto.FLOAT]


def test_the_graph_decodes_as_the_reference_does(detector: GFL) -> None:
    """With as many candidates as there are pairs above the threshold, the two selections are the same rule."""
    options = {"score_threshold": 0.1, "detections": 60}
    graph = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph", candidates=900, rounds=40, **options)  # type: ignore[arg-type]
    reference = TorchPredictor(detector, HEIGHT, WIDTH, **options)  # type: ignore[arg-type]
    for ours, theirs in zip(graph.predict(IMAGES), reference.predict(IMAGES), strict=True):
        assert len(ours) == len(theirs) > 20
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


@rtx
@pytest.mark.parametrize(("precision", "batch"), [("fp32", 1), ("fp16", None)])
def test_tensorrt_builds_it(
    precision: str, batch: int | None, detector: GFL, exported: dict[str, Path], tmp_path: Path
) -> None:
    onnx_file = exported[precision]
    if batch is not None:
        onnx_file = tmp_path / "x.onnx"
        export_onnx(detector, onnx_file, height=HEIGHT, width=WIDTH, batch=batch, precision=precision)
    report = build_engine(onnx_file, tmp_path / "x.plan", properties={}, target="sm_86")
    assert (report.proven, report.message) == ("planned", None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int8(detector: GFL, exported: dict[str, Path], precision: str, tmp_path: Path) -> None:
    check_int8(detector, exported, IMAGES, precision, tmp_path)
