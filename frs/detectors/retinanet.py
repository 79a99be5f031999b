"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017), as mmdetection or as torchvision builds it.

images (B, 3, H, W) -> backbone [C3, C4, C5] -> FPN [P3 .. P7] -> two towers of 3x3 convolutions, shared by the levels
-> class logits (B, A*K, H/s, W/s) and box regression (B, A*4, H/s, W/s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from frs.detectors.anchors import base_anchors, grid_anchors, padded_strides, places_within, shapes
from frs.detectors.base import Candidates, Detector, HeadOutputs, Targets
from frs.detectors.boxes import clip, decode, encode
from frs.detectors.dense import (
    best_pairs,
    flatten,
    initialise,
    per_level,
    reference_selection,
    select,
    set_prior,
    tower,
)
from frs.detectors.focal import focal_sum
from frs.detectors.fpn import FPN
from frs.detectors.matching import Matches, match
from frs.detectors.spec import DetectorSpec, check_choices, check_numbers, check_ranges
from frs.distributed import normaliser


@dataclass(frozen=True)
class RetinaNetSpec(DetectorSpec):
    """All that is needed to build the network again; the defaults are mmdetection's `retinanet_r50_fpn`.

    conventions: "mmdet" or "torchvision", whose anchors, assignment, normalisation of the losses, decoding and selection;
    head_norm: "none" or "group"; p6_source: "c5" or "p5"; anchor_scale: smallest anchor side in strides; octaves: sizes a
    level; ratios: height over width; box_loss: "l1" on the coded boxes, or "giou" (torchvision's `_v2`).
    """

    family: ClassVar[str] = "retinanet"
    conventions: str = "mmdet"
    head_norm: str = "none"
    p6_source: str = "c5"
    relu_before_p7: bool = False
    anchor_scale: float = 4.0
    octaves: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_loss: str = "l1"

    @property
    def anchors_per_location(self) -> int:
        return self.octaves * len(self.ratios)

    def _check_own(self) -> None:
        check_ranges(octaves=(self.octaves, 1, 5), ratios=(len(self.ratios), 1, 100))
        check_numbers("anchors", (self.anchor_scale, *self.ratios))
        check_choices(
            conventions=(self.conventions, ("mmdet", "torchvision")),
            head_norm=(self.head_norm, ("none", "group")),
            p6_source=(self.p6_source, ("c5", "p5")),
            box_loss=(self.box_loss, ("l1", "giou")),
        )


class RetinaNet(Detector):
    """One network for training, reference and export; see the module's first lines for the shapes."""

    spec: RetinaNetSpec

    def __init__(self, spec: RetinaNetSpec) -> None:
        super().__init__(spec)
        self.fpn = FPN(
            self.backbone.channels,
            spec.fpn_channels,
            levels=spec.levels,
            p6_source=spec.p6_source,
            relu_before_p7=spec.relu_before_p7,
        )
        classes, anchors = len(spec.classes), spec.anchors_per_location
        width = spec.head_channels or spec.fpn_channels
        self.class_tower = tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm)
        self.box_tower = tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm)
        last = width if spec.head_depth else spec.fpn_channels
        self.class_output = nn.Conv2d(last, anchors * classes, 3, padding=1)
        self.box_output = nn.Conv2d(last, anchors * 4, 3, padding=1)
        initialise(self.class_tower, self.box_tower, self.class_output, self.box_output)
        set_prior(self.class_output)

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.backbone(images))
        return levels

    def head(self, features: list[Tensor]) -> HeadOutputs:
        return HeadOutputs(self.class_logits(features), [self.box_output(self.box_tower(level)) for level in features])

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        return [self.class_output(self.class_tower(level)) for level in features]

    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Focal loss over the anchors that count, and L1 on the coded boxes (or 1 - GIoU) of the positive ones.

        mmdetection divides the sums over the batch by its positive anchors; torchvision each image's by its own, and takes
        the mean over the images.
        """
        anchors = self._anchors(outputs.class_logits).to(targets.boxes.device)  # (N, 4)
        deltas = flatten(outputs.box_regression, 4)  # (B, N, 4)
        matches = match(
            anchors,
            targets,
            last_best_wins=self.spec.conventions == "mmdet",
            within=self._within(outputs.class_logits, targets),
        )
        share = self._share(matches)  # (B,)

        image, anchor = matches.positive.nonzero(as_tuple=True)
        box = matches.box[image, anchor]
        pairs, counted = (image, anchor, targets.labels[image, box]), matches.positive | matches.negative
        logits = per_level(outputs.class_logits, len(self.spec.classes))
        classification = (focal_sum(logits, pairs, counted=counted) * share).sum()

        found, true = deltas[image, anchor].float(), targets.boxes[image, box]
        if self.spec.box_loss == "giou":
            wrong = generalized_box_iou_loss(self._decode(found, anchors[anchor]), true)
        else:
            wrong = (found - encode(true, anchors[anchor])).abs().sum(dim=1)
        return {"classification": classification, "box": (wrong * share[image]).sum()}

    def _share(self, matches: Matches) -> Tensor:
        """(B,): what each image's sums are multiplied by. Both libraries count an image without a positive as one."""
        positives = matches.positive.sum(dim=1).clamp(min=1)
        if self.spec.conventions == "mmdet":
            return (1 / normaliser(positives.sum())).expand(len(positives))
        return 1 / (positives * normaliser(torch.ones_like(positives).sum()))

    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        anchors = self._anchors(outputs.class_logits).to(outputs.class_logits[0].device)  # (N, 4), a constant
        logits = flatten(outputs.class_logits, len(self.spec.classes)).float()  # (B, N, K)
        deltas = flatten(outputs.box_regression, 4).float()  # (B, N, 4)
        best, anchor, label = best_pairs(logits, candidates)
        boxes = clip(self._decode(select(deltas, anchor), anchors[anchor]), image_size)
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
        """Best pairs above the threshold level by level, then class-wise NMS; mmdetection drops empty boxes before it."""
        classes = len(self.spec.classes)
        sizes = [level[0].numel() // classes for level in outputs.class_logits]
        anchors = torch.split(self._anchors(outputs.class_logits).to(outputs.class_logits[0].device), sizes)
        scores = flatten(outputs.class_logits, classes).float().sigmoid()
        deltas = flatten(outputs.box_regression, 4).float()
        found = []
        for image in range(len(scores)):
            image_deltas = torch.split(deltas[image], sizes)

            def boxes(level: int, places: Tensor, of: tuple[Tensor, ...] = image_deltas) -> tuple[Tensor, Tensor]:
                decoded = clip(self._decode(of[level][places], anchors[level][places]), image_size)
                return decoded, torch.ones_like(decoded[:, 0])

            found.append(
                reference_selection(
                    torch.split(scores[image], sizes),
                    boxes,
                    score_threshold=score_threshold,
                    per_level=per_level,
                    iou_threshold=iou_threshold,
                    max_detections=max_detections,
                    drop_empty=self.spec.conventions == "mmdet",
                )
            )
        return found

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return decode(deltas, anchors, bounded_below=self.spec.conventions == "mmdet")

    def _anchors(self, levels: list[Tensor]) -> Tensor:
        """(N, 4) for feature maps of these sizes."""
        spec, rounded = self.spec, self.spec.conventions == "torchvision"
        maps = shapes(levels)
        bases = [
            base_anchors(stride, spec.anchor_scale, spec.octaves, spec.ratios, rounded=rounded)
            for stride in spec.strides
        ]
        return grid_anchors(maps, padded_strides(maps, spec.finest) if rounded else spec.strides, bases)

    def _within(self, levels: list[Tensor], targets: Targets) -> Tensor | None:
        """(B, N): the anchors that count in the loss; None: all, as with torchvision."""
        if targets.sizes is None or self.spec.conventions == "torchvision":
            return None
        return places_within(shapes(levels), self.spec.strides, self.spec.anchors_per_location, targets.sizes)
