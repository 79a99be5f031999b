"""What FRS costs: a distilling step against a plain step and the teacher's class branch, side by side in one run.

    python benchmarks/train_step.py [--families fcos ...] [--size 256] [--batch 2] [--steps 7] [--threads N] [--json FILE]

Each family, ResNet-101 -> ResNet-50, 256 channels, random weights, noise and random boxes. Measured in turn, a b c a b c ...:

    (a) a training step of the plain student: forward, loss, backward, AdamW
    (b) the teacher's features and class logits, without gradients
    (c) a training step with FRS

Prints the medians and (c) / ((a) + (b)): 1 would mean that the adapters and the two terms are free.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from frs.detectors import Detector, Targets, build_detector, spec_of_family
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.training import DetectionObjective, Device, Objective, resolve_device

FAMILIES = ("retinanet", "fcos", "gfl", "faster_rcnn")


def main() -> None:
    parser = argparse.ArgumentParser(description="What FRS costs: (c) / ((a) + (b)).")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, a multiple of 128")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    device = resolve_device("auto", options.threads)
    print(
        f"R101 -> R50, {options.size} px, batch {options.batch}, {device.threads} threads, {options.precision}",
        flush=True,
    )
    figures = {}
    for family in options.families:
        figures[family] = compare(family, options, device)
        median, ratio, (low, high) = (figures[family][key] for key in ("median", "ratio", "rounds"))
        print(
            f"{family:12} (a) plain step {median['a']:.3f} s, (b) teacher {median['b']:.3f} s, (c) FRS step "
            f"{median['c']:.3f} s, (c) / ((a) + (b)) {ratio:.3f} (single rounds {low:.3f} to {high:.3f})",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


def compare(family: str, options: argparse.Namespace, device: Device) -> dict[str, Any]:
    """Median seconds of a, b and c, and (c) / ((a) + (b)) with its least and greatest round."""
    autocast = device.dtype(options.precision)
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    images = images.to(device.torch_device, memory_format=torch.channels_last)
    targets = random_targets(options.batch, options.size, device.torch_device)
    teacher = detector(family, "resnet101").eval()
    device.place(teacher)

    def step(objective: Objective) -> Callable[[], None]:
        device.place(objective.train())
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-6)

        def run() -> None:
            with torch.autocast(device.kind, dtype=autocast, enabled=autocast is not None):
                total = objective(images, targets, 10**6).total
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            optimizer.step()

        return run

    @torch.no_grad()
    def ask_teacher() -> None:
        with torch.autocast(device.kind, dtype=autocast, enabled=autocast is not None):
            teacher.class_logits(teacher.features(teacher.normalize(images)))

    weights = DistillationWeights(alpha=0.005, beta=0.02)
    runs = {
        "a": step(DetectionObjective(detector(family, "resnet50"))),
        "b": ask_teacher,
        "c": step(DistillationObjective(detector(family, "resnet50"), teacher, weights)),
    }
    seconds = measure(runs, options.steps, device.kind)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = sorted(c / (a + b) for a, b, c in zip(*seconds.values(), strict=True))
    ratio = median["c"] / (median["a"] + median["b"])
    return {"median": median, "ratio": ratio, "rounds": (ratios[0], ratios[-1]), "seconds": seconds}


def detector(family: str, backbone: str) -> Detector:
    """As mmdetection's configuration of the family."""
    names, depth = tuple(f"class {i}" for i in range(80)), 1 if family == "faster_rcnn" else 4
    return build_detector(spec_of_family(family)(names, tuple(range(80)), backbone, head_depth=depth))


def random_targets(batch: int, size: int, device: torch.device) -> Targets:
    """Twenty boxes an image, 16 px to half the image."""
    corners = torch.rand(batch, 20, 2) * size * 0.5
    sides = 16 + torch.rand(batch, 20, 2) * (size * 0.5 - 16)
    flags = torch.ones(batch, 20, dtype=torch.bool, device=device)
    boxes = torch.cat([corners, corners + sides], dim=-1).to(device)
    return Targets(boxes, torch.randint(0, 80, (batch, 20), device=device), flags, ~flags)


def measure(runs: dict[str, Callable[[], None]], steps: int, kind: str) -> dict[str, list[float]]:
    """Seconds of every step, the runs in turn, after two rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(steps + 2):
        for name, run in runs.items():
            if kind == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if kind == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
