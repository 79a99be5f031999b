"""Exported files against torch, with enough boxes to mean something. About 40 s on one core: six exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from frs.detectors import Detector, RetinaNet
from frs.edge.ort import OnnxRuntimeSession
from frs.errors import ExportError
from frs.evaluation.parity import parity
from frs.export.onnx import export_onnx, read_metadata
from frs.export.torch_predictor import TorchPredictor
from tests.frs.export.lab import busy_detector, pictures
from tests.frs.export.quantised import PRECISIONS, check_int8

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(3, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return busy_detector(IMAGES)


@pytest.fixture(scope="module")
def exported(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for precision in ("fp32", "fp16"):
        export_onnx(detector, folder / f"{precision}.onnx", height=HEIGHT, width=WIDTH, batch=None, precision=precision)
    return {path.stem: path for path in folder.iterdir()}


def test_fp32_is_torch(detector: Detector, exported: dict[str, Path]) -> None:
    """Seen: scores within 2e-6, boxes within 2e-4 px; the limits leave room for another processor's sums."""
    measured = parity(
        TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), OnnxRuntimeSession(exported["fp32"]), [IMAGES]
    )
    assert measured.boxes >= 150
    assert measured.unmatched == 0
    assert measured.score_max is not None
    assert measured.score_max < 1e-4
    assert measured.box_max is not None
    assert measured.box_max < 0.05


def test_fp16_is_near_torch(detector: Detector, exported: dict[str, Path]) -> None:
    """Seen: 0.7% unmatched, scores within 0.003 and boxes within 0.3 px at the 99th percentile; random weights damp
    nothing, trained ones lose ten times less."""
    measured = parity(
        TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), OnnxRuntimeSession(exported["fp16"]), [IMAGES]
    )
    assert measured.boxes >= 150
    assert measured.unmatched < 0.02
    assert measured.score_p95 is not None
    assert 1e-6 < measured.score_p95 < 0.01  # not the same arithmetic, and not another network
    assert measured.box_p95 is not None
    assert measured.box_p95 < 1.0


def test_fp16_holds_half_weights(exported: dict[str, Path]) -> None:
    model = onnx.load(exported["fp16"])
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert exported["fp16"].stat().st_size < 0.65 * exported["fp32"].stat().st_size


def test_interface(exported: dict[str, Path]) -> None:
    model = onnx.load(exported["fp32"])
    kinds = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    types = onnx.TensorProto
    batch = kinds["images"][1][0]
    assert isinstance(batch, str)
    assert kinds == {
        "images": (types.UINT8, [batch, 3, HEIGHT, WIDTH]),
        "boxes": (types.FLOAT, [batch, 100, 4]),
        "scores": (types.FLOAT, [batch, 100]),
        "labels": (types.INT32, [batch, 100]),
        "num_detections": (types.INT32, [batch]),
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonZero", "NonMaxSuppression", "Loop", "If", "Scan"}


def test_an_open_batch_takes_any(exported: dict[str, Path]) -> None:
    session = OnnxRuntimeSession(exported["fp32"])
    together = session.predict(IMAGES)
    for i, expected in enumerate(together):
        alone = session.predict(IMAGES[i : i + 1])[0]
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3)


def test_metadata_comes_back(exported: dict[str, Path]) -> None:
    metadata = read_metadata(exported["fp16"])
    assert metadata == OnnxRuntimeSession(exported["fp16"]).metadata
    assert metadata.classes == ("cat", "dög", "bird")
    assert metadata.category_ids == (3, 17, 44)
    assert (metadata.height, metadata.width, metadata.padding) == (HEIGHT, WIDTH, 114)
    assert (metadata.candidates, metadata.rounds, metadata.detections) == (300, 16, 100)
    assert (metadata.score_threshold, metadata.iou_threshold, metadata.precision) == (0.05, 0.5, "fp16")


def test_the_same_detector_gives_the_same_bytes_without_a_local_path(detector: Detector, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    reports = [export_onnx(detector, folder / "x.onnx", height=64, width=64) for folder in folders]
    first, second = ((folder / "x.onnx").read_bytes() for folder in folders)
    assert first == second
    assert reports[0] == reports[1]
    assert reports[0].bytes == len(first)
    for local in (tmp_path, Path(torch.__file__).parent, Path(__file__).parents[3], Path.home()):
        assert str(local).encode() not in first
    assert b".py" not in first
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.onnx"]  # no external data, no leftovers


def test_nodes_before_nms_are_those_that_lead_to_the_candidates(detector: Detector, tmp_path: Path) -> None:
    """The count does not depend on NMS: more rounds add three nodes each, all of them after the candidates."""
    few, many = (export_onnx(detector, tmp_path / "x.onnx", height=64, width=64, rounds=r) for r in (1, 9))
    assert few.nodes_before_nms == many.nodes_before_nms < few.nodes
    assert many.nodes - few.nodes == 24


def test_a_graph_that_nvidia_refuses_is_not_written(detector: Detector, tmp_path: Path) -> None:
    class DataDependent(RetinaNet):
        def features(self, images: Tensor) -> list[Tensor]:
            return super().features(images.masked_fill(torch.nonzero(images).sum() > 0, 0.0))

    detector_class = type(detector)
    detector.__class__ = DataDependent
    try:
        with pytest.raises(ExportError, match=r"x\.onnx: .*NonZero"):
            export_onnx(detector, tmp_path / "x.onnx", height=64, width=64)
    finally:
        detector.__class__ = detector_class
    assert not list(tmp_path.iterdir())


def test_faults_in_words(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'int4'"):
        export_onnx(detector, tmp_path / "x.onnx", height=64, width=64, precision="int4")
    with pytest.raises(ExportError, match="there is no such file"):
        read_metadata(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model at all, only words\n")
    with pytest.raises(ExportError, match=r"text\.onnx"):
        read_metadata(tmp_path / "text.onnx")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int8(detector: Detector, exported: dict[str, Path], precision: str, tmp_path: Path) -> None:
    check_int8(detector, exported, IMAGES, precision, tmp_path)
