"""FCOS as an exported file, with both conventions. About 30 s on one core: four exports, two engines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from frs.detectors import Detector
from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation.parity import Parity, parity
from frs.export.engine import build_engine
from frs.export.onnx import REFUSED, export_onnx
from frs.export.torch_predictor import TorchPredictor
from tests.frs.export.lab import busy_detector, fire, pictures
from tests.frs.export.quantised import PRECISIONS, check_int8
from tests.frs.export.test_engine import rtx

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(3, HEIGHT, WIDTH)
CONVENTIONS = ["mmdet", "torchvision"]


@pytest.fixture(scope="module", params=CONVENTIONS)
def detector(request: pytest.FixtureRequest) -> Detector:
    """Its boxes are some 15 px wide on the first level, so that they overlap."""
    made: Any = busy_detector(IMAGES, family="fcos", conventions=request.param)
    for scale in made.scales:
        torch.nn.init.uniform_(scale, 0.9, 1.1)
    torch.nn.init.constant_(made.box_output.bias, math.log(8) if request.param == "mmdet" else 1.0)
    fire(made, made.class_output, IMAGES, 50)
    built: Detector = made
    return built


@pytest.fixture(scope="module")
def exported(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "fp16"):
        export_onnx(detector, folder / f"{precision}.onnx", height=HEIGHT, width=WIDTH, batch=None, precision=precision)
    return {path.stem: path for path in folder.iterdir()}


def measured(detector: Detector, path: Path) -> Parity:
    return parity(TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), OnnxRuntimeSession(path), [IMAGES])


def test_fp32_is_torch(detector: Detector, exported: dict[str, Path]) -> None:
    found = measured(detector, exported["fp32"])
    assert found.boxes >= 150
    assert found.unmatched == 0
    assert found.score_max is not None
    assert found.score_max < 1e-4
    assert found.box_max is not None
    assert found.box_max < 0.05


def test_fp16_is_near_torch(detector: Detector, exported: dict[str, Path]) -> None:
    found = measured(detector, exported["fp16"])
    assert found.boxes >= 150
    assert found.unmatched <= 0.03
    assert found.score_p95 is not None
    assert 1e-6 < found.score_p95 < 0.01  # not the same arithmetic, and not another network
    assert found.box_p95 is not None
    assert found.box_p95 < 1.0


def test_standard_operators_of_fixed_shapes(exported: dict[str, Path]) -> None:
    for path in exported.values():
        model = onnx.load(path)
        assert not {node.op_type for node in model.graph.node} & {*REFUSED, "RoiAlign"}
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]


def test_the_graph_decodes_as_the_reference_does(detector: Detector) -> None:
    """With every pair a candidate and no threshold the two selections are one rule; torchvision's score is the graph's, so
    there a threshold makes no difference either."""
    threshold = 0.0 if detector.spec.conventions == "mmdet" else 0.05  # type: ignore[attr-defined]
    options: dict[str, Any] = {"score_threshold": threshold, "detections": 60}
    graph = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph", candidates=900, rounds=40, **options)
    reference = TorchPredictor(detector, HEIGHT, WIDTH, **options)
    for ours, theirs in zip(graph.predict(IMAGES), reference.predict(IMAGES), strict=True):
        assert len(ours) == len(theirs) > 20
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_mmdetections_threshold_is_of_the_class_alone() -> None:
    """The graph's is of the final score: at one threshold it finds a part of what the reference does, or all."""
    made: Any = busy_detector(IMAGES, family="fcos")
    graph, reference = (
        TorchPredictor(made, HEIGHT, WIDTH, decode=decode, score_threshold=0.08).predict(IMAGES)
        for decode in ("graph", "reference")
    )
    for ours, theirs in zip(graph, reference, strict=True):
        assert theirs.scores.min() < 0.08 < ours.scores.min()
        assert len(ours) < len(theirs)
        np.testing.assert_allclose(ours.scores, theirs.scores[: len(ours)], atol=1e-5)


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_are_planned(precision: str, exported: dict[str, Path], tmp_path: Path) -> None:
    report = build_engine(exported[precision], tmp_path / "x.plan", properties={}, target="sm_86")
    assert (report.builder, report.target, report.proven, report.message) == ("tensorrt_rtx", "sm_86", "planned", None)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int8(detector: Detector, exported: dict[str, Path], precision: str, tmp_path: Path) -> None:
    check_int8(detector, exported, IMAGES, precision, tmp_path)
