"""A RetinaNet by torchvision's conventions, exported at a size whose sides are no multiples of all strides."""

from __future__ import annotations

from pathlib import Path

from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation.parity import parity
from frs.export.onnx import export_onnx
from frs.export.torch_predictor import TorchPredictor
from tests.frs.export.lab import busy_detector, pictures

HEIGHT, WIDTH = 96, 160


def test_the_file_is_torch(tmp_path: Path) -> None:
    images = pictures(3, HEIGHT, WIDTH)
    detector = busy_detector(images, conventions="torchvision", p6_source="p5", relu_before_p7=True, levels=5)
    export_onnx(detector, tmp_path / "d.onnx", height=HEIGHT, width=WIDTH, batch=None)
    ours = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph")
    measured = parity(ours, OnnxRuntimeSession(tmp_path / "d.onnx"), [images])
    assert measured.boxes >= 150
    assert measured.unmatched == 0
    assert measured.box_max is not None
    assert measured.box_max < 0.05
