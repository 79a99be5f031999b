"""Our exported RetinaNet against torchvision's own export of its RetinaNet, side by side in ONNX Runtime.

    python benchmarks/export_latency.py [--size 320] [--runs 40] [--threads N] [--json FILE]

ResNet-50, 256 channels, 91 classes, random weights, one image. torchvision's detectors do not export with dynamo, so that
theirs is its legacy export. Each is timed twice: with class biases that let thousands of (anchor, class) pairs over the
score threshold, and with biases that let a few. Runs alternate in short blocks; a ratio below 1 means that ours is the
faster. Node counts stand beside the times, and whether TensorRT-RTX builds each graph.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn

from frs.detectors import RetinaNet, RetinaNetSpec
from frs.edge.machine import available_cores, cpu_model
from frs.edge.timing import summarise
from frs.export.engine import build_engine
from frs.export.onnx import export_onnx

CLASSES = 91
THRESHOLD = 0.05
PASSING = {"many": 5000, "few": 20}
BLOCK, UNTIMED = 5, 1

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Our exported RetinaNet against torchvision's, in ONNX Runtime.")
    parser.add_argument("--size", type=int, default=320, help="pixels of a side, a multiple of 128")
    parser.add_argument("--runs", type=int, default=40, help="timed runs of each graph, at least 40")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    print(f"RetinaNet ResNet-50, {options.size} px, {options.threads} threads, {cpu_model()}")
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, options.size, options.size), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        scenes = {name: compare(Path(folder), image, passing, options) for name, passing in PASSING.items()}
    for name, figures in scenes.items():
        print(f"\n{name}: {PASSING[name]} pairs over the threshold")
        for who in ("ours", "torchvision"):
            graph, latency = figures[who], figures[who]["latency_ms"]
            before = f" ({graph['nodes_before_nms']} before NMS)" if "nodes_before_nms" in graph else ""
            print(
                f"  {who:12} p50 {latency['p50']:8.2f} ms {latency['p50_interval']}  p99 {latency['p99']:8.2f} ms  "
                f"{graph['nodes']} nodes{before}  TensorRT-RTX: {graph['engine']}"
            )
        print(f"  ours / torchvision, p50: {figures['ratio']:.3f}")
    if options.json:
        described = {"size": options.size, "threads": options.threads, "device": cpu_model()}
        options.json.write_text(json.dumps({**described, "scenes": scenes}, indent=1) + "\n", encoding="utf-8")


def compare(folder: Path, image: Tensor, passing: int, options: argparse.Namespace) -> Figures:
    ours, theirs = folder / "ours.onnx", folder / "torchvision.onnx"
    report = export_onnx(our_detector(image, passing), ours, height=options.size, width=options.size)
    export_legacy(their_detector(image, passing), image, theirs)
    pixels = image.numpy()
    timings = interleave(
        {
            "ours": runner(ours, pixels, options.threads),
            "torchvision": runner(theirs, pixels[0].astype(np.float32) / 255, options.threads),
        },
        options.runs,
    )
    figures: Figures = {
        "ours": {"nodes": report.nodes, "nodes_before_nms": report.nodes_before_nms},
        "torchvision": {"nodes": count_nodes(onnx.load(theirs).graph)},
    }
    for name, path in (("ours", ours), ("torchvision", theirs)):
        built = build_engine(path, path.with_suffix(".plan"), properties={})
        milliseconds = np.array(timings[name]) / 1e6
        figures[name]["latency_ms"] = summarise([milliseconds[i : i + BLOCK] for i in range(0, options.runs, BLOCK)])
        figures[name]["engine"] = "builds" if built.plan_sha256 else f"failed: {str(built.message)[:160]}"
    figures["ratio"] = round(figures["ours"]["latency_ms"]["p50"] / figures["torchvision"]["latency_ms"]["p50"], 4)
    return figures


def our_detector(image: Tensor, passing: int) -> RetinaNet:
    names = tuple(f"class {i}" for i in range(CLASSES))
    detector = RetinaNet(
        RetinaNetSpec(names, tuple(range(CLASSES)), "resnet50", p6_source="p5", relu_before_p7=True)
    ).eval()
    with torch.no_grad():
        settle(detector, lambda: detector.features(detector.normalize(image)))
        spread_scores(
            detector.class_output, lambda: detector.class_logits(detector.features(detector.normalize(image))), passing
        )
    return detector


def their_detector(image: Tensor, passing: int) -> Any:
    """Set to the input's own size, so that it does not resize."""
    size = image.shape[-1]
    model: Any = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size, score_thresh=THRESHOLD
    ).eval()
    with torch.no_grad():
        pixels = model.transform([image[0] / 255.0])[0].tensors
        settle(model, lambda: model.backbone(pixels))
        classifier = model.head.classification_head
        spread_scores(classifier.cls_logits, lambda: [classifier(list(model.backbone(pixels).values()))], passing)
    return model


def settle(model: nn.Module, features: Callable[[], object]) -> None:
    """Statistics of this image in every batch norm: random weights alone would let activations explode."""

    def measure(module: Any, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance + 1e-3)

    handles = [
        module.register_forward_pre_hook(measure) for module in model.modules() if hasattr(module, "running_mean")
    ]
    features()
    for handle in handles:
        handle.remove()


def spread_scores(layer: nn.Conv2d, logits: Callable[[], list[Tensor]], passing: int) -> None:
    """Logits of unit spread, `passing` of which are over the score threshold."""
    assert layer.bias is not None
    layer.bias.zero_()
    layer.weight /= torch.cat([level.flatten() for level in logits()]).std()
    flat = torch.cat([level.flatten() for level in logits()])
    layer.bias.fill_(math.log(THRESHOLD / (1 - THRESHOLD)) - flat.topk(passing).values[-1].item())


def export_legacy(model: nn.Module, image: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, ([image[0] / 255.0],), path, dynamo=False, opset_version=18, input_names=["images"], verbose=False
        )


def runner(path: Path, pixels: Any, threads: int) -> Callable[[], None]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": pixels})


def interleave(runners: dict[str, Callable[[], None]], runs: int) -> dict[str, list[int]]:
    """Nanoseconds of every run; blocks in turn, the first runs of a block not counted."""
    timings: dict[str, list[int]] = {name: [] for name in runners}
    for start in range(0, runs, BLOCK):
        for name, run in runners.items():
            for _ in range(UNTIMED if start else 5):
                run()
            for _ in range(min(BLOCK, runs - start)):
                began = perf_counter_ns()
                run()
                timings[name].append(perf_counter_ns() - began)
    return timings


def count_nodes(graph: Any) -> int:
    """With those of the graphs inside."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(count_nodes, inner))


if __name__ == "__main__":
    main()
