"""Assignment, losses and their gradients: ours against torchvision's `compute_loss`, on the same outputs and annotations.

    python benchmarks/loss_and_assignment.py --annotations FILE --images FOLDER [--size 512] [--batch 4] [--rounds 7]

RetinaNet and FCOS with torchvision's conventions, 91 classes, random outputs around the prior, real COCO annotations: the
images of FILE (instances_*.json) whose objects come nearest to 20, letterboxed. The two run in turn. Ours starts from the
head's maps, level by level; torchvision's from tensors that its head has flattened already. Prints the medians, their
ratio, and how far values and gradients lie apart.
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
from torch import Tensor
from torchvision.models import detection

from frs.data.coco import read_coco
from frs.detectors import Detector, HeadOutputs, Targets, build_detector, spec_of_family
from frs.detectors.dense import flatten
from frs.edge.machine import available_cores, cpu_model

CLASSES = 91
MODELS = {"retinanet": "retinanet_resnet50_fpn", "fcos": "fcos_resnet50_fpn"}
STRIDES = (8, 16, 32, 64, 128)
Timed = Callable[[], dict[str, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Losses and assignment against torchvision's.")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances, a JSON file")
    parser.add_argument("--images", type=Path, required=True, help="their folder")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side, a multiple of 128")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    targets = annotated(options.annotations, options.images, options.size, options.batch)
    counts = targets.valid.sum(1).tolist()
    print(f"{options.size} px, {CLASSES} classes, {counts} objects, {options.threads} threads, {cpu_model()}")
    rows = {family: compare(family, targets, options.size, options.rounds) for family in MODELS}
    for family, row in rows.items():
        print(
            f"{family:10} ours {row['ours_s']:.3f} s, torchvision {row['torchvision_s']:.3f} s: {row['ratio']:.1f} times as "
            f"fast; values within {row['values']:.1e}, gradients within {row['gradients']:.1e} (relative)"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def annotated(annotations: Path, images: Path, size: int, batch: int) -> Targets:
    """The images with about 20 objects each; a label is COCO's category id, as torchvision has it."""
    data = read_coco(annotations, images)
    ids = torch.tensor([category.id for category in data.categories])
    chosen = sorted(data.images, key=lambda image: abs(int((~image.crowd).sum()) - 20))[:batch]
    most = max(len(image.boxes) for image in chosen)
    boxes, labels = torch.zeros(batch, most, 4), torch.zeros(batch, most, dtype=torch.int64)
    valid = torch.zeros(batch, most, dtype=torch.bool)
    for i, image in enumerate(chosen):
        there = ~image.crowd  # torchvision knows no crowds
        count = int(there.sum())
        boxes[i, :count] = torch.from_numpy(image.boxes[there]) * size / max(image.width, image.height)
        labels[i, :count] = ids[torch.from_numpy(image.labels[there])]
        valid[i, :count] = True
    return Targets(boxes, labels, valid, torch.zeros_like(valid))


def compare(family: str, targets: Targets, size: int, rounds: int) -> dict[str, Any]:
    names = tuple(f"class {i}" for i in range(CLASSES))
    own: dict[str, Any] = {"box_activation": "relu", "centerness_on": "regression"} if family == "fcos" else {}
    kind = spec_of_family(family)
    detector = build_detector(
        kind(names, tuple(range(CLASSES)), backbone="resnet18", **{"conventions": "torchvision", **own})
    )
    outputs = random_outputs(detector, len(targets.boxes), size)
    mine, leaves = ours(detector, outputs, targets)
    yours, flat = theirs(family, outputs, targets, size)
    seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    values: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, run, tensors in (("ours", mine, leaves), ("torchvision", yours, flat)):
            for tensor in tensors:
                tensor.grad = None
            started = time.perf_counter()
            losses = list(run().values())
            torch.autograd.backward(torch.stack(losses).sum())
            if number:
                seconds[name].append(time.perf_counter() - started)
            values[name] = sorted(float(loss.detach()) for loss in losses)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "ours_s": median["ours"],
        "torchvision_s": median["torchvision"],
        "ratio": median["torchvision"] / median["ours"],
        "values": max(abs(a - b) / abs(b) for a, b in zip(values["ours"], values["torchvision"], strict=True)),
        "gradients": furthest(leaves, flat),
    }


def random_outputs(detector: Detector, batch: int, size: int) -> HeadOutputs:
    """Of the shapes that the detector's head has, scores around the prior of 0.01; leaves of the graph."""
    with torch.no_grad():
        shapes = detector.head(detector.features(torch.zeros(1, 3, size, size)))

    def made(name: str, level: Tensor) -> Tensor:
        values = torch.randn(batch, *level.shape[1:]) * 0.5
        if name == "class_logits":
            values -= 4.6
        if name == "box_regression" and hasattr(shapes, "centerness"):
            values = values.abs() + 0.1  # distances: torchvision's head has their ReLU behind it, ours before it
        return values.contiguous(memory_format=torch.channels_last).requires_grad_(True)  # as in a training

    return type(shapes)(**{name: [made(name, level) for level in levels] for name, levels in vars(shapes).items()})


def ours(detector: Detector, outputs: HeadOutputs, targets: Targets) -> tuple[Timed, list[Tensor]]:
    leaves = [level for levels in vars(outputs).values() for level in levels]
    features = [torch.zeros(1, 1, *level.shape[2:]) for level in outputs.class_logits]
    return lambda: detector.loss(features, outputs, targets), leaves


def theirs(family: str, outputs: HeadOutputs, targets: Targets, size: int) -> tuple[Timed, list[Tensor]]:
    model: Any = getattr(detection, MODELS[family])(weights=None, weights_backbone=None, num_classes=CLASSES)
    names = {"class_logits": "cls_logits", "box_regression": "bbox_regression", "centerness": "bbox_ctrness"}
    widths = {"class_logits": CLASSES, "box_regression": 4, "centerness": 1}
    flat = {
        names[key]: flatten([level.detach() for level in levels], widths[key]).requires_grad_(True)
        for key, levels in vars(outputs).items()
    }
    images = detection.image_list.ImageList(torch.zeros(len(targets.boxes), 3, size, size), [(size, size)])
    images.image_sizes = [(size, size)] * len(targets.boxes)
    anchors = model.anchor_generator(images, outputs.class_logits)
    truth = [
        {"boxes": targets.boxes[i, flags], "labels": targets.labels[i, flags]} for i, flags in enumerate(targets.valid)
    ]
    per_level = [level[0, 0].numel() for level in outputs.class_logits]
    more = (per_level,) if family == "fcos" else ()
    return lambda: model.compute_loss(truth, flat, anchors, *more), list(flat.values())


def furthest(leaves: list[Tensor], flat: list[Tensor]) -> float:
    """The greatest difference of a gradient, relative to the greatest gradient of its kind."""
    levels = len(leaves) // len(flat)
    worst = 0.0
    for i, tensor in enumerate(flat):
        assert tensor.grad is not None
        parts = [leaf.grad for leaf in leaves[i * levels : (i + 1) * levels]]
        mine = flatten([part for part in parts if part is not None], tensor.shape[2])
        worst = max(worst, float((mine - tensor.grad).abs().max() / tensor.grad.abs().max()))
    return worst


if __name__ == "__main__":
    main()
