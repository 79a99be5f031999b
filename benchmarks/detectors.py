"""The four families side by side: size, graph, TensorRT-RTX plan, parity. docs/detectors.md quotes it.

    python -m benchmarks.detectors [--size 640] [--families gfl ...] [--json FILE]

ResNet-50, 80 classes, 256 channels, one image a call, every parameter and buffer random and the class outputs so ready to
fire that an image has fifty to a hundred detections (a detector with random weights finds nothing, and a comparison of nothing
proves nothing). Parity is of the ONNX file in ONNX Runtime with torch, over three drawn pictures. For each family that
torchvision has, its own model: whether torch.onnx.export takes it, the nodes of its legacy export, and whether TensorRT-RTX
builds that.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torchvision.models import detection

from frs.detectors import Detector, multiply_accumulates, parameter_count
from frs.edge.machine import cpu_model
from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation.parity import parity
from frs.export.engine import build_engine
from frs.export.onnx import export_onnx
from frs.export.torch_predictor import TorchPredictor
from tests.frs.detectors.two_stage import busy
from tests.frs.export.lab import busy_detector, busy_gfl, pictures

TORCHVISION = {
    "retinanet": "retinanet_resnet50_fpn",
    "fcos": "fcos_resnet50_fpn",
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
}
FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="The families side by side: size, graph, plan, parity.")
    parser.add_argument("--size", type=int, default=640, help="pixels of a side, a multiple of 128")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    print(f"ResNet-50, 80 classes, {options.size} px, {cpu_model()}", flush=True)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            rows[family] = {**ours(family, options.size, Path(folder)), **theirs(family, Path(folder))}
            print(json.dumps({family: rows[family]}), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def ours(family: str, size: int, folder: Path) -> Row:
    images = pictures(3, size, size)
    detector = full_size(family, images)
    row: Row = {
        "params_M": round(parameter_count(detector) / 1e6, 2),
        "GMAC": round(multiply_accumulates(detector, (size, size)) / 1e9, 1),
    }
    reference = TorchPredictor(detector, size, size, decode="graph")
    for precision in ("fp32", "fp16"):
        path = folder / f"{family}.{precision}.onnx"
        report = export_onnx(detector, path, height=size, width=size, precision=precision)
        plan = build_engine(path, path.with_suffix(".plan"), properties={})
        measured = parity(reference, OnnxRuntimeSession(path), [image[None] for image in images])
        row[precision] = {
            "nodes": report.nodes,
            "nodes_before_nms": report.nodes_before_nms,
            "onnx_MB": round(report.bytes / 1e6, 1),
            "plan_MB": plan.size_mb,
            "build_s": plan.seconds,
            "plan": plan.message or plan.proven,
            "boxes": measured.boxes,
            "unmatched": round(measured.unmatched, 4),
            "score_p95": measured.score_p95,
            "iou_p5": measured.iou_p5,
        }
    return row


@torch.no_grad()
def full_size(family: str, images: npt.NDArray[np.uint8]) -> Detector:
    """The family's usual network with the classes of COCO's number."""
    names = tuple(f"class {i}" for i in range(80))
    usual: Row = {"backbone": "resnet50", "backbone_options": {}, "fpn_channels": 256, "levels": 5, "head_depth": 4}
    usual |= {"classes": names, "category_ids": tuple(range(80))}
    if family == "faster_rcnn":
        detector = busy(images, **{**usual, "head_depth": 1, "roi_channels": 1024})
        detector.roi_head.class_output.weight *= 3  # of 81 classes one must stand out
        return detector
    if family == "gfl":
        return busy_gfl(images, boxes=50, **usual)
    return busy_detector(images, family=family, boxes=100, **usual)


def theirs(family: str, folder: Path) -> Row:
    """torchvision's model: its dynamo export, the nodes of its legacy export, and what TensorRT-RTX says of them."""
    if family not in TORCHVISION:
        return {}
    name, path = TORCHVISION[family], folder / f"{family}.torchvision.onnx"
    row: Row = {"torchvision_dynamo": dynamo(name)}
    model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, ([torch.rand(3, 320, 320)],), path, dynamo=False, opset_version=18, verbose=False)
    row["torchvision_nodes"] = count_nodes(onnx.load(path).graph)
    built = build_engine(path, path.with_suffix(".plan"), properties={})
    row["torchvision_plan"] = str(built.message or built.proven)[:160]
    return row


def dynamo(name: str) -> str:
    """What README's line says: "exports", or the error. In a process of its own, for it prints its whole graph."""
    line = (
        "import torch, torchvision; torch.onnx.export(torchvision.models.detection."
        f"{name}(weights=None, weights_backbone=None).eval(), ([torch.rand(3, 320, 320)],), dynamo=True)"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "exports"
    errors = re.findall(r"\w*\.(\w+(?:Error|Node)): ", done.stderr)
    return errors[0] if errors else done.stderr.strip().splitlines()[-1][:160]


def count_nodes(graph: Any) -> int:
    """With those of the graphs inside."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(count_nodes, inner))


if __name__ == "__main__":
    main()
