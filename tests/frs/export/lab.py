"""Detectors and images with which a comparison of exports means something."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import nn

from frs.detectors import Detector, HeadOutputs, RetinaNet, RetinaNetSpec, build_detector
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


def busy_detector(images: npt.NDArray[np.uint8], *, seed: int = 0, boxes: int = 50, **options: Any) -> Detector:
    """Every parameter and buffer random, and so ready to fire that each of the images has that many detections."""
    torch.manual_seed(seed)
    defaults = {
        "backbone": "resnet18",
        "backbone_options": {"channels": [16, 24, 32, 48], "stem_width": 16},
        "fpn_channels": 32,
        "levels": 4,
        "head_depth": 1,
    }
    detector = build_detector(RetinaNetSpec(CLASSES, CATEGORY_IDS, **{**defaults, **options})).eval()
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(module.weight, 0.7, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    assert isinstance(detector, RetinaNet)
    with torch.no_grad():
        outputs = _outputs(detector.train(), images)  # the statistics of these images, as after a training
        detector.eval()
        for layer, levels, spread in (
            (detector.class_output, outputs.class_logits, 1.0),
            (detector.box_output, outputs.box_regression, 0.2),
        ):
            layer.weight *= spread / torch.cat([level.flatten() for level in levels]).std()
    bias = detector.class_output.bias
    assert bias is not None
    height, width = images.shape[2:]
    for value in range(-8, 6):
        nn.init.constant_(bias, value)
        found = TorchPredictor(detector, height, width, decode="graph").predict(images)
        if min(map(len, found)) >= boxes:
            return detector
    raise AssertionError(f"only {[len(each) for each in found]} boxes come out; take another seed")


def _outputs(detector: Detector, images: npt.NDArray[np.uint8]) -> HeadOutputs:
    return detector.head(detector.features(detector.normalize(torch.from_numpy(images))))
