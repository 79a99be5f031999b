"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017), by default as mmdetection builds it.

images (B, 3, H, W) -> backbone [C2 .. C5] -> FPN [P2 .. P6] -> RPN: objectness (B, A, H/s, W/s), boxes (B, A*4, H/s, W/s)
-> proposals (B, P, 4) -> RoIAlign on P2 .. P5 (B * P, C, 7, 7) -> class logits (B * P, K + 1), boxes (B * P, K, 4)

The head's outputs are the RPN's: they are what lies on the levels, and what FRS distils (Du et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from frs.detectors.base import Candidates, Detector, HeadOutputs, Targets
from frs.detectors.boxes import clip
from frs.detectors.dense import best_pairs, select
from frs.detectors.fpn import FPN
from frs.detectors.roi_align import level_of, pooled, sampled
from frs.detectors.roi_head import RoIHead
from frs.detectors.rpn import RPN
from frs.detectors.spec import DetectorSpec, check_choices, check_numbers, check_ranges

POOLED_LEVELS = 4
"""P2 .. P5: P6 is for large proposals alone."""


@dataclass(frozen=True)
class FasterRCNNSpec(DetectorSpec):
    """All that is needed to build the network again; the defaults are mmdetection's `faster-rcnn_r50_fpn`.

    head_channels, head_depth: of the RPN; roi_channels: width of the fully connected layers of the second stage; box_head:
    "fc" or "conv", see `RoIHead`; fpn_norm: "none" or "batch"; anchor_scale: an anchor's side in strides; ratios: height
    over width; conventions: "mmdet" or "torchvision", whose arithmetic is followed in anchors, assignment, losses, RoIAlign
    and selection. torchvision's `fasterrcnn_resnet50_fpn_v2` has head_depth 2, box_head conv and fpn_norm batch.
    """

    family: ClassVar[str] = "faster_rcnn"
    finest: ClassVar[int] = 4
    head_depth: int = 1
    conventions: str = "mmdet"
    fpn_norm: str = "none"
    anchor_scale: float = 8.0
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_head: str = "fc"
    roi_channels: int = 1024

    @property
    def anchors_per_location(self) -> int:
        return len(self.ratios)

    def _check_own(self) -> None:
        check_ranges(
            levels=(self.levels, 4, 5), ratios=(len(self.ratios), 1, 100), roi_channels=(self.roi_channels, 8, 4096)
        )
        check_numbers("anchors", (self.anchor_scale, *self.ratios))
        check_choices(
            conventions=(self.conventions, ("mmdet", "torchvision")),
            fpn_norm=(self.fpn_norm, ("none", "batch")),
            box_head=(self.box_head, ("fc", "conv")),
        )


class FasterRCNN(Detector):
    """One network for training, reference and export; see the module's first lines for the shapes."""

    spec: FasterRCNNSpec

    def __init__(self, spec: FasterRCNNSpec) -> None:
        super().__init__(spec)
        self.fpn = FPN(
            self.backbone.channels, spec.fpn_channels, levels=spec.levels, p6_source="pool", norm=spec.fpn_norm
        )
        self.rpn = RPN(
            spec.fpn_channels,
            spec.head_channels or spec.fpn_channels,
            spec.head_depth,
            strides=spec.strides,
            scale=spec.anchor_scale,
            ratios=spec.ratios,
            conventions=spec.conventions,
        )
        self.roi_head = RoIHead(
            spec.fpn_channels, len(spec.classes), spec.roi_channels, kind=spec.box_head, conventions=spec.conventions
        )
        self.torchvision = spec.conventions == "torchvision"

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.backbone(images))
        return levels

    def head(self, features: list[Tensor]) -> HeadOutputs:
        outputs: HeadOutputs = self.rpn(features)
        return outputs

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        return self.rpn.objectness(features)

    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """The RPN's two losses and the second stage's two, on the proposals of this step; no gradient goes through their
        boxes."""
        size = features[0].shape[2] * self.spec.finest, features[0].shape[3] * self.spec.finest
        terms = self.rpn.loss(outputs, targets, size)
        total = 2000 if self.torchvision else 1000
        inside = size if targets.sizes is None else targets.sizes
        proposals, present = self.rpn.proposals(outputs, inside, per_level=2000, total=total)
        samples = self.roi_head.samples(proposals, present, targets)
        logits, deltas = self.roi_head(self._pooled(features, samples.boxes, samples.image))
        return {**terms, **self.roi_head.loss(logits, deltas, samples)}

    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        proposals, alive = self.rpn.graph_proposals(outputs, image_size, self.proposals)  # (B, P, 4), (B, P)
        levels = features[:POOLED_LEVELS]
        level = level_of(proposals, POOLED_LEVELS, torchvision=self.torchvision)
        strides = self.spec.strides[:POOLED_LEVELS]
        cells = sampled(levels, proposals, level, strides, aligned=not self.torchvision)  # (B, P, C, 7, 7)
        logits, deltas = self.roi_head(cells.flatten(0, 1).to(levels[0].dtype))  # (B * P, K + 1), (B * P, K, 4)
        classes, count = len(self.spec.classes), proposals.shape[1]
        scores = torch.unflatten(torch.softmax(logits, dim=1)[:, :classes], 0, (-1, count)) * alive[..., None].float()
        best, place, label = best_pairs(scores, candidates)
        deltas = select(deltas.unflatten(0, (-1, count)).flatten(1, 2), place * classes + label)  # (B, k, 4)
        boxes = clip(self.roi_head.boxes(deltas, select(proposals, place)), image_size)
        return Candidates(boxes, best, label)

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
        """Of 1,000 proposals all (proposal, class) pairs above the threshold, class-wise NMS; torchvision drops boxes of less
        than a hundredth of a pixel, mmdetection keeps even empty ones. per_level: places of a level that enter the RPN's NMS.
        """
        proposals, present = self.rpn.proposals(outputs, image_size, per_level=per_level, total=1000)
        image, place = present.nonzero(as_tuple=True)
        rois = proposals[image, place]  # (R, 4)
        logits, deltas = self.roi_head(self._pooled(features, rois, image))
        scores = torch.softmax(logits, dim=1)[:, :-1]  # (R, K)
        boxes = clip(self.roi_head.boxes(deltas, rois[:, None]), image_size)  # (R, K, 4)
        wanted = scores > score_threshold
        if self.torchvision:
            wanted &= (boxes[..., 2:] - boxes[..., :2] >= 1e-2).all(dim=-1)
        found = []
        for number in range(len(proposals)):
            roi, label = (wanted & (image == number)[:, None]).nonzero(as_tuple=True)
            of, best = boxes[roi, label], scores[roi, label]
            kept = batched_nms(of, best, label, iou_threshold)[:max_detections]
            found.append((of[kept], best[kept], label[kept]))
        return found

    def _pooled(self, features: list[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Boxes (R, 4) of images (R,) -> (R, C, 7, 7), sampled as the original does."""
        return pooled(
            features[:POOLED_LEVELS],
            boxes,
            image,
            level_of(boxes, POOLED_LEVELS, torchvision=self.torchvision),
            self.spec.strides[:POOLED_LEVELS],
            samples=2 if self.torchvision else 0,
            aligned=not self.torchvision,
        )
