"""What every detector is to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frs.detectors.backbones import Backbone
from frs.detectors.spec import DetectorSpec

Outputs = TypeVar("Outputs", bound="HeadOutputs")


@dataclass
class HeadOutputs:
    """The raw answers of the head, one tensor a level; a family may add lists of its own.

    class_logits: (B, A*K, H, W), channel = anchor * K + class; box_regression: (B, A*4, H, W), channel = anchor * 4 +
    coordinate; a family that codes boxes otherwise says so. Of a detector with proposals they are the RPN's: K is 1, and the
    logits say how likely an object is.
    """

    class_logits: list[Tensor]
    box_regression: list[Tensor]

    def float(self: Outputs) -> Outputs:
        """The same in float32."""
        return replace(
            self, **{each.name: [level.float() for level in getattr(self, each.name)] for each in fields(self)}
        )


@dataclass
class Targets:
    """The annotated boxes of a batch, padded with zeros to G, the most that an image has.

    boxes: (B, G, 4) float32, xyxy in pixels of the input; labels: (B, G) int64, contiguous; valid: (B, G) bool, objects
    to be found; ignore: (B, G) bool, crowd regions, in which an anchor is neither right nor wrong; sizes: (B, 2) int64,
    height and width of each image, top left in the input, beyond which is padding; None: all of the input is image.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignore: Tensor
    sizes: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The same with every tensor changed."""
        return Targets(
            boxes=change(self.boxes),
            labels=change(self.labels),
            valid=change(self.valid),
            ignore=change(self.ignore),
            sizes=None if self.sizes is None else change(self.sizes),
        )


@dataclass
class Candidates:
    """The best (anchor, class) pairs of each image, before NMS.

    boxes: (B, K, 4) float32, xyxy clipped to the input; scores: (B, K) float32 in 0..1, descending; labels: (B, K) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(nn.Module, ABC):
    """A detector whose parts can be asked one by one: distillation and export need no hooks and no second pass.

    proposals: boxes of an image that a second stage looks at in `decode`; a family without one does not read it.
    """

    proposals: int = 300
    spec: DetectorSpec
    backbone: Backbone
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.backbone = Backbone(
            spec.backbone,
            spec.backbone_options,
            strides=spec.backbone_strides,
            style=spec.backbone_style,
            norm_eps=spec.norm_eps,
        )
        mean = spec.pixel_mean or tuple(255 * value for value in self.backbone.mean)
        std = spec.pixel_std or tuple(255 * value for value in self.backbone.std)
        self.spec = replace(spec, pixel_mean=mean, pixel_std=std)  # a saved file must not depend on timm's defaults
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """images: (B, 3, H, W) RGB in 0..255, of any type -> what `features` takes, in the parameters' type.

        sizes: as `Targets.sizes`; what lies beyond becomes zero, as where mmdetection and torchvision pad.
        """
        if self.spec.channel_order == "bgr":
            images = images.flip(1)
        normalised = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        if sizes is None:
            return normalised
        rows = torch.arange(images.shape[2], device=images.device)[:, None] < sizes[:, 0, None, None]  # (B, H, 1)
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1, None, None]  # (B, 1, W)
        return normalised.masked_fill(~(rows & columns)[:, None], 0.0)

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W), normalised -> (B, C, H/stride, W/stride) for each level."""

    @abstractmethod
    def head(self, features: list[Tensor]) -> HeadOutputs:
        """Both branches."""

    @abstractmethod
    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        """The class branch alone, for a teacher whose boxes nobody asks for."""

    @abstractmethod
    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """The named terms, each () float32, as they are to be added."""

    @abstractmethod
    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        """The `candidates` best (anchor, class) pairs over all levels; static shapes, exportable. No threshold."""

    @abstractmethod
    def reference_detections(
        self,
        features: list[Tensor],
        outputs: HeadOutputs,
        *,
        image_size: tuple[int, int],
        score_threshold: float = 0.05,
        per_level: int = 1000,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes (D, 4), scores (D,) and labels (D,) of each image, after exact NMS.

        image_size: (height, width) that boxes are clipped to: of the input, or of its part that is no padding.
        """


def parameter_count(detector: nn.Module) -> int:
    """Trainable and frozen parameters; buffers are not counted."""
    return sum(parameter.numel() for parameter in detector.parameters())


@torch.no_grad()
def multiply_accumulates(detector: Detector, size: tuple[int, int]) -> int:
    """Of all convolutions and linear layers for one image of (height, width), counted as they run up to the candidates: a
    second stage counts for each of `detector.proposals`."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    handles = [module.register_forward_hook(count) for module in detector.modules()]
    images = torch.zeros(1, 3, *size, device=detector.pixel_mean.device)
    try:
        features = detector.features(detector.normalize(images))
        detector.decode(features, detector.head(features), candidates=1, image_size=size)
    finally:
        for handle in handles:
            handle.remove()
    return total
