"""Detectors and images with which a comparison of exports means something."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn

from frs.detectors import GFL, Detector, HeadOutputs, build_detector, spec_of_family
from frs.edge.image import letterbox, to_nchw
from frs.export.torch_predictor import TorchPredictor

CLASSES = ("cat", "dög", "bird")
CATEGORY_IDS = (3, 17, 44)


def pictures(count: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 3, height, width): coloured shapes on blurred noise, letterboxed from another aspect."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        noise = random.integers(0, 256, (height, width * 3 // 2, 3), dtype=np.uint8)
        image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, w, h = random.integers(0, (image.width, image.height, image.width // 3, image.height // 3))
            colour = tuple(int(c) for c in random.integers(0, 256, 3))
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((int(x), int(y), int(x + w + 4), int(y + h + 4)), fill=colour)
        images.append(letterbox(np.asarray(image), height, width)[0])
    return to_nchw(images)


SMALL: dict[str, Any] = {
    "classes": CLASSES,
    "category_ids": CATEGORY_IDS,
    "backbone": "resnet18",
    "backbone_options": {"channels": [16, 24, 32, 48], "stem_width": 16},
    "fpn_channels": 32,
    "levels": 4,
    "head_depth": 1,
}


def busy_detector(
    images: npt.NDArray[np.uint8], *, family: str = "retinanet", seed: int = 0, boxes: int = 50, **options: Any
) -> Detector:
    """Every parameter and buffer random, and so ready to fire that each of the images has that many detections.

    For the families that have a `class_output` and a `box_output`.
    """
    torch.manual_seed(seed)
    detector: Any = build_detector(spec_of_family(family)(**{**SMALL, **options})).eval()
    randomise(detector)
    with torch.no_grad():
        outputs = _outputs(detector.train(), images)  # the statistics of these images, as after a training
        detector.eval()
        scale_output(detector.class_output, outputs.class_logits, 1.0)
        scale_output(detector.box_output, outputs.box_regression, 0.2)
    fire(detector, detector.class_output, images, boxes)
    built: Detector = detector
    return built


@torch.no_grad()
def busy_gfl(images: npt.NDArray[np.uint8], *, boxes: int = 60, **options: Any) -> GFL:
    """With sides as a trained one has them: distributions that differ from place to place, most of a few strides, so that
    the boxes of all levels lie beside each other."""
    made = busy_detector(images, family="gfl", boxes=1, **options)
    assert isinstance(made, GFL)
    made.box_output.weight *= 5
    assert made.box_output.bias is not None
    made.box_output.bias.copy_((-0.5 * torch.arange(17.0)).repeat(4))
    for scale in made.scales:
        nn.init.uniform_(scale, 0.7, 1.4)
    fire(made, made.class_output, images, boxes)
    return made


def randomise(detector: nn.Module) -> None:
    """All parameters; the buffers of a BatchNorm become the statistics of the next batch in training mode."""
    for module in detector.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(module.weight, 0.7, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0


@torch.no_grad()
def scale_output(layer: nn.Conv2d, levels: list[Tensor], spread: float) -> None:
    """So that what comes out of the layer has this standard deviation."""
    layer.weight *= spread / torch.cat([level.flatten() for level in levels]).std()


def fire(detector: Detector, layer: nn.Conv2d, images: npt.NDArray[np.uint8], boxes: int) -> None:
    """Raise the bias of the class output until each image has that many detections."""
    assert layer.bias is not None
    height, width = images.shape[2:]
    for value in range(-8, 6):
        nn.init.constant_(layer.bias, value)
        found = TorchPredictor(detector, height, width, decode="graph").predict(images)
        if min(map(len, found)) >= boxes:
            return
    raise AssertionError(f"only {[len(each) for each in found]} boxes come out; take another seed")


def _outputs(detector: Detector, images: npt.NDArray[np.uint8]) -> HeadOutputs:
    return detector.head(detector.features(detector.normalize(torch.from_numpy(images))))
