"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017), by default as mmdetection builds it.

images (B, 3, H, W) -> backbone [C3, C4, C5] -> FPN [P3 .. P7] -> two towers of 3x3 convolutions, shared by the levels
-> class logits (B, A*K, H/s, W/s) and box regression (B, A*4, H/s, W/s)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from frs.detectors.anchors import base_anchors, grid_anchors
from frs.detectors.backbones import Backbone
from frs.detectors.base import Candidates, Detector, HeadOutputs, Targets
from frs.detectors.boxes import clip, decode, encode
from frs.detectors.fpn import FPN
from frs.detectors.losses import focal_loss
from frs.detectors.matching import match
from frs.detectors.spec import DetectorSpec, check_numbers, check_ranges

PRIOR = 0.01
"""What every anchor's score is before the first step: most of them are background."""


@dataclass(frozen=True)
class RetinaNetSpec(DetectorSpec):
    """All that is needed to build the network again; the defaults are mmdetection's `retinanet_r50_fpn`.

    head_norm: "none" or "group"; p6_source: "c5" or "p5"; anchor_scale: smallest anchor side in strides; octaves: sizes a
    level; ratios: height over width.
    """

    family: ClassVar[str] = "retinanet"
    head_norm: str = "none"
    p6_source: str = "c5"
    relu_before_p7: bool = False
    anchor_scale: float = 4.0
    octaves: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def anchors_per_location(self) -> int:
        return self.octaves * len(self.ratios)

    def _check_own(self) -> None:
        check_ranges(octaves=(self.octaves, 1, 5), ratios=(len(self.ratios), 1, 100))
        check_numbers("anchors", (self.anchor_scale, *self.ratios))
        if self.head_norm not in ("none", "group") or self.p6_source not in ("c5", "p5"):
            raise ValueError(f"head_norm {self.head_norm!r} or p6_source {self.p6_source!r} is not known")


class RetinaNet(Detector):
    """One network for training, reference and export; see the module's first lines for the shapes."""

    spec: RetinaNetSpec

    def __init__(self, spec: RetinaNetSpec) -> None:
        super().__init__()
        backbone = Backbone(spec.backbone, spec.backbone_options)
        self.backbone = backbone
        mean = spec.pixel_mean or tuple(255 * value for value in backbone.mean)
        std = spec.pixel_std or tuple(255 * value for value in backbone.std)
        self.spec = replace(spec, pixel_mean=mean, pixel_std=std)  # a saved file must not depend on timm's defaults
        self.fpn = FPN(
            backbone.channels,
            spec.fpn_channels,
            levels=spec.levels,
            p6_source=spec.p6_source,
            relu_before_p7=spec.relu_before_p7,
        )
        classes, anchors = len(spec.classes), spec.anchors_per_location
        width = spec.head_channels or spec.fpn_channels
        self.class_tower = _tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm)
        self.box_tower = _tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm)
        last = width if spec.head_depth else spec.fpn_channels
        self.class_output = nn.Conv2d(last, anchors * classes, 3, padding=1)
        self.box_output = nn.Conv2d(last, anchors * 4, 3, padding=1)
        self._initialise()
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def _initialise(self) -> None:
        for part in (self.class_tower, self.box_tower, self.class_output, self.box_output):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        assert self.class_output.bias is not None
        nn.init.constant_(self.class_output.bias, -math.log((1 - PRIOR) / PRIOR))

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.backbone(images))
        return levels

    def head(self, features: list[Tensor]) -> HeadOutputs:
        return HeadOutputs(self.class_logits(features), [self.box_output(self.box_tower(level)) for level in features])

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        return [self.class_output(self.class_tower(level)) for level in features]

    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Focal loss and L1 on the coded boxes, each summed over the batch and divided by its positive anchors."""
        anchors = self._anchors(outputs.class_logits).to(targets.boxes.device)  # (N, 4)
        logits = _flatten(outputs.class_logits, len(self.spec.classes))  # (B, N, K)
        deltas = _flatten(outputs.box_regression, 4)  # (B, N, 4)
        matches = match(anchors, targets)
        positives = matches.positives()

        image, anchor = matches.positive.nonzero(as_tuple=True)
        box = matches.box[image, anchor]
        wanted = torch.zeros_like(logits, dtype=torch.float32)
        wanted[image, anchor, targets.labels[image, box]] = 1.0
        counted = (matches.positive | matches.negative)[..., None]
        classification = (focal_loss(logits, wanted) * counted).sum() / positives

        coded = encode(targets.boxes[image, box], anchors[anchor])
        box_loss = (deltas[image, anchor].float() - coded).abs().sum() / positives
        return {"classification": classification, "box": box_loss}

    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        """Two top-ks instead of one over all (anchor, class) pairs: a pair among the K best belongs to an anchor that is
        among the K best by its best class. So boxes are decoded for K anchors only, and an index never exceeds K times
        the classes, small enough for the exporter's division in float arithmetic."""
        classes = len(self.spec.classes)
        anchors = self._anchors(outputs.class_logits).to(outputs.class_logits[0].device)  # (N, 4), a constant
        logits = _flatten(outputs.class_logits, classes).float()  # (B, N, K)
        deltas = _flatten(outputs.box_regression, 4).float()  # (B, N, 4)
        kept = min(candidates, logits.shape[1])
        best, anchor = logits.amax(dim=2).topk(kept)  # (B, kept)
        if classes == 1:
            label = torch.zeros_like(anchor)
        else:
            pairs = logits.gather(1, anchor[..., None].expand(-1, -1, classes)).flatten(1)  # (B, kept * K)
            best, pair = pairs.topk(min(candidates, pairs.shape[1]))
            label = pair % classes
            anchor = anchor.gather(1, torch.div(pair, classes, rounding_mode="floor"))
        deltas = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = clip(decode(deltas, anchors[anchor]), image_size)
        return Candidates(boxes, torch.sigmoid(best), label)

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
        """mmdetection's selection: best pairs above the threshold level by level, empty boxes dropped, class-wise NMS."""
        anchors = self._anchors(outputs.class_logits).to(outputs.class_logits[0].device)
        sizes = [level[0].numel() // len(self.spec.classes) for level in outputs.class_logits]
        classes = len(self.spec.classes)
        scores = _flatten(outputs.class_logits, classes).float().sigmoid()
        deltas = _flatten(outputs.box_regression, 4).float()
        found = []
        for image in range(len(scores)):
            parts = []
            levels = (torch.split(each, sizes) for each in (scores[image], deltas[image], anchors))
            for level_scores, level_deltas, level_anchors in zip(*levels, strict=True):
                flat = level_scores.flatten()
                best, pair = flat.topk(min(per_level, len(flat)))
                pair, best = pair[best > score_threshold], best[best > score_threshold]
                anchor = pair // classes
                boxes = clip(decode(level_deltas[anchor], level_anchors[anchor]), image_size)
                parts.append((boxes, best, pair % classes))
            boxes, best, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            full = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            boxes, best, labels = boxes[full], best[full], labels[full]
            kept = batched_nms(boxes, best, labels, iou_threshold)[:max_detections]
            found.append((boxes[kept], best[kept], labels[kept]))
        return found

    def _anchors(self, levels: list[Tensor]) -> Tensor:
        """(N, 4) for feature maps of these sizes."""
        spec = self.spec
        bases = [base_anchors(stride, spec.anchor_scale, spec.octaves, spec.ratios) for stride in spec.strides]
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        return grid_anchors(shapes, spec.strides, bases)


def _tower(channels: int, width: int, depth: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Conv2d(channels if i == 0 else width, width, 3, padding=1, bias=norm == "none"))
        if norm == "group":
            layers.append(nn.GroupNorm(math.gcd(32, width), width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _flatten(levels: list[Tensor], size: int) -> Tensor:
    """[(B, A * size, H, W)] -> (B, sum of H * W * A, size), in the order of the anchors."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, size) for level in levels], dim=1)
