"""Faster R-CNNs with which a comparison means something, and torchvision's own parts with the same weights."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from frs.data import read_coco
from frs.detectors import FasterRCNN, FasterRCNNSpec, HeadOutputs, Targets, build_detector
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets
from tests.frs.export.lab import SMALL, pictures, randomise, scale_output

HEIGHT, WIDTH = 96, 160  # P6's stride, 64, divides neither
IMAGES = pictures(2, HEIGHT, WIDTH)
Sets = list[tuple[Tensor, Tensor]]

V2: dict[str, Any] = {"box_head": "conv", "fpn_norm": "batch", "head_depth": 2}


def build(seed: int = 0, **options: Any) -> FasterRCNN:
    """A small one, as it is before training."""
    torch.manual_seed(seed)
    spec = FasterRCNNSpec(**{**SMALL, "levels": 5, "roi_channels": 64, **options})
    built = build_detector(spec)
    assert isinstance(built, FasterRCNN)
    return built


@torch.no_grad()
def busy(images: npt.NDArray[np.uint8], *, seed: int = 0, **options: Any) -> FasterRCNN:
    """Every parameter and buffer random, with outputs as spread as a trained network's."""
    detector = build(seed, **options)
    randomise(detector)
    batch = torch.from_numpy(images)
    features = detector.train().features(detector.normalize(batch))  # the statistics of these images
    outputs = detector.head(features)
    scale_output(detector.rpn.class_output, outputs.class_logits, 2.0)
    scale_output(detector.rpn.box_output, outputs.box_regression, 0.2)
    size = (batch.shape[2], batch.shape[3])
    proposals, present = detector.rpn.proposals(detector.head(features), size, per_level=300, total=300)
    image, place = present.nonzero(as_tuple=True)
    logits, deltas = detector.roi_head(detector._pooled(features, proposals[image, place], image))
    detector.roi_head.class_output.weight /= logits.std()
    detector.roi_head.box_output.weight *= 0.5 / deltas.std()
    return detector.eval()


class _Trunk(nn.Module):
    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector
        self.out_channels = detector.spec.fpn_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        names = ("0", "1", "2", "3", "pool")
        return OrderedDict(zip(names, self.detector.features(images), strict=True))


def torchvision_twin(detector: FasterRCNN, height: int, width: int) -> TorchvisionFasterRCNN:
    """torchvision's detector on our features, for images of this size in 0..1; label k + 1 is our k."""
    spec, channels, classes = detector.spec, detector.spec.fpn_channels, len(detector.spec.classes)
    anchors = AnchorGenerator(
        tuple((int(spec.anchor_scale * s),) for s in spec.strides), (spec.ratios,) * len(spec.strides)
    )
    rpn_head = RPNHead(channels, len(spec.ratios), conv_depth=spec.head_depth)
    box_head: nn.Module = TwoMLPHead(channels * 49, spec.roi_channels)
    if spec.box_head == "conv":
        box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [spec.roi_channels], norm_layer=nn.BatchNorm2d)
    predictor = FastRCNNPredictor(spec.roi_channels, classes + 1)
    _copy(detector.rpn, rpn_head)
    _copy(nn.ModuleList([detector.roi_head.tower, detector.roi_head.fc]), box_head)
    with torch.no_grad():
        ours = detector.roi_head
        for theirs, own in zip(predictor.cls_score.parameters(), ours.class_output.parameters(), strict=True):
            theirs.copy_(own.roll(1, dims=0))  # their background is the first row
        for theirs, own in zip(predictor.bbox_pred.parameters(), ours.box_output.parameters(), strict=True):
            theirs.zero_()[4:] = own
    return TorchvisionFasterRCNN(
        _Trunk(detector),
        rpn_anchor_generator=anchors,
        rpn_head=rpn_head,
        box_head=box_head,
        box_predictor=predictor,
        min_size=min(height, width),
        max_size=max(height, width),
        image_mean=[value / 255 for value in spec.pixel_mean or ()],
        image_std=[value / 255 for value in spec.pixel_std or ()],
    ).train(detector.training)


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Both have the same layers in the same order."""
    values = list(source.state_dict().values())
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


def generated(seed: int = 0) -> Sets:
    """Boxes and labels of two images; some boxes small, two at one place."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    images = []
    for count in (9, 2):
        boxes = torch.minimum(random_boxes(count, seed + count, 60), limit)
        if count == 9:
            boxes[1, 2:] = boxes[1, :2] + 7.5
            boxes[3] = boxes[2] + 1.0
        images.append((torch.minimum(boxes, limit), torch.randint(0, 3, (count,), generator=generator)))
    return images


def real() -> Sets:
    """Annotations of COCO, brought to the size of the test's images."""
    folder = Path(os.environ["FRS_DATA"]) / "tiny_coco"
    data = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    found = []
    for image in data.images[:20]:
        scale = torch.tensor([WIDTH / image.width, HEIGHT / image.height]).repeat(2)
        boxes = torch.from_numpy(image.boxes[~image.crowd]) * scale
        if len(boxes):
            found.append((boxes, torch.from_numpy(image.labels[~image.crowd]) % 3))
    assert sum(len(boxes) for boxes, _ in found) > 80
    return found


generated_and_real = pytest.mark.parametrize(
    "sets",
    [
        generated,
        pytest.param(
            real,
            marks=pytest.mark.skipif(
                "FRS_DATA" not in os.environ, reason="FRS_DATA names no folder with COCO data sets"
            ),
        ),
    ],
)


def as_targets(sets: Sets) -> Targets:
    made = targets([boxes for boxes, _ in sets])
    for row, (_, labels) in zip(made.labels, sets, strict=True):
        row[: len(labels)] = labels
    return made


def as_torchvision(sets: Sets) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for boxes, labels in sets]


def images_of(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(pictures(count, HEIGHT, WIDTH, seed))


def answers(detector: FasterRCNN, images: Tensor) -> tuple[list[Tensor], HeadOutputs]:
    features = detector.features(detector.normalize(images))
    return features, detector.head(features)
