"""GFL (Li et al., "Generalized Focal Loss", 2020), as mmdetection builds it.

images (B, 3, H, W) -> backbone [C3, C4, C5] -> FPN [P3 .. P7] -> two towers of 3x3 convolutions, shared by the levels
-> class logits (B, K, H/s, W/s), whose sigmoid is class and quality of the box in one, and for each of the four sides of a
box the logits of a distribution over its distance from the place, 0 to R strides: (B, 4 * (R + 1), H/s, W/s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from frs.detectors.anchors import base_anchors, grid_anchors, places_within, shapes
from frs.detectors.atss import assign
from frs.detectors.base import Candidates, Detector, HeadOutputs, Targets
from frs.detectors.boxes import clip, iou
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
from frs.detectors.focal import quality_focal_sum
from frs.detectors.fpn import FPN
from frs.detectors.gfl_losses import distribution_focal_loss
from frs.detectors.spec import DetectorSpec, check_ranges
from frs.distributed import normaliser

ANCHOR_SCALE = 8.0
"""Side of the one anchor at a place, in strides; only the assignment sees it."""
GIOU_WEIGHT = 2.0
DFL_WEIGHT = 0.25
BELOW_LAST_BIN = 0.1
"""A target distance stays this far below the last bin, so that there is a bin on either side of it."""


@dataclass(frozen=True)
class GFLSpec(DetectorSpec):
    """All that is needed to build the network again; the defaults are mmdetection's `gfl_r50_fpn`.

    reg_max: R, the greatest distance of a side from its place, in strides; a distribution has R + 1 bins.
    """

    family: ClassVar[str] = "gfl"
    reg_max: int = 16

    def _check_own(self) -> None:
        check_ranges(reg_max=(self.reg_max, 1, 64))


class GFL(Detector):
    """One network for training, reference and export; see the module's first lines for the shapes.

    A level's `box_regression` is (B, 4 * (R + 1), H, W), channel = side * (R + 1) + bin, sides left, top, right, bottom.
    """

    spec: GFLSpec

    def __init__(self, spec: GFLSpec) -> None:
        super().__init__(spec)
        self.fpn = FPN(
            self.backbone.channels, spec.fpn_channels, levels=spec.levels, p6_source="p5", relu_before_p7=False
        )
        width = spec.head_channels or spec.fpn_channels
        self.class_tower = tower(spec.fpn_channels, width, spec.head_depth, "group")
        self.box_tower = tower(spec.fpn_channels, width, spec.head_depth, "group")
        last = width if spec.head_depth else spec.fpn_channels
        self.class_output = nn.Conv2d(last, len(spec.classes), 3, padding=1)
        self.box_output = nn.Conv2d(last, 4 * (spec.reg_max + 1), 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(spec.levels))
        initialise(self.class_tower, self.box_tower, self.class_output, self.box_output)
        set_prior(self.class_output)

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.backbone(images))
        return levels

    def head(self, features: list[Tensor]) -> HeadOutputs:
        boxes = [
            self.box_output(self.box_tower(level)) * scale for level, scale in zip(features, self.scales, strict=True)
        ]
        return HeadOutputs(self.class_logits(features), boxes)

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        return [self.class_output(self.class_tower(level)) for level in features]

    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Quality focal loss over the positives; GIoU and distribution focal loss of each positive, weighted by its best
        score, over the sum of those weights. All in strides."""
        levels = self._anchors(outputs.class_logits, targets.boxes.device)
        centres, strides = _places(torch.cat(levels))  # (N, 2), (N, 1)
        logits = per_level(outputs.class_logits, len(self.spec.classes))  # (B, N_l, K)
        sides = flatten(outputs.box_regression, 4 * (self.spec.reg_max + 1))  # (B, N, 4 * (R + 1))
        within = None
        if targets.sizes is not None:
            within = places_within(shapes(outputs.class_logits), self.spec.strides, 1, targets.sizes)
        matches = assign(levels, targets, within=within)

        image, place = matches.positive.nonzero(as_tuple=True)
        box = matches.box[image, place]
        sides, centre = sides[image, place].float(), centres[place] / strides[place]
        found = _to_boxes(centre, self._distances(sides))
        wanted = targets.boxes[image, box] / strides[place]
        best = torch.cat([level.detach().amax(dim=2) for level in logits], dim=1)  # (B, N)
        weight = best[image, place].float().sigmoid()
        # mmdetection counts an image without a positive as one.
        count = matches.positive.sum(dim=1).clamp(min=1).sum()
        positives, mass = normaliser(torch.stack([count.float(), weight.sum()]))

        quality = iou(found.detach()[:, None], wanted[:, None]).flatten()
        pairs = (image, place, targets.labels[image, box])
        counted = matches.positive | matches.negative
        distances = torch.cat([centre - wanted[:, :2], wanted[:, 2:] - centre], dim=-1)
        distances = distances.clamp(min=0.0, max=self.spec.reg_max - BELOW_LAST_BIN)
        spread = distribution_focal_loss(torch.unflatten(sides, -1, (4, -1)), distances).mean(dim=-1)
        return {
            "classification": quality_focal_sum(logits, pairs, quality, counted=counted).sum() / positives,
            "box": GIOU_WEIGHT * (generalized_box_iou_loss(found, wanted) * weight).sum() / mass,
            "distribution": DFL_WEIGHT * (spread * weight).sum() / mass,
        }

    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        logits = flatten(outputs.class_logits, len(self.spec.classes)).float()  # (B, N, K)
        sides = flatten(outputs.box_regression, 4 * (self.spec.reg_max + 1))  # (B, N, 4 * (R + 1))
        centres, strides = _places(torch.cat(self._anchors(outputs.class_logits, logits.device)))  # constants
        best, place, label = best_pairs(logits, candidates)
        boxes = _to_boxes(centres[place], self._distances(select(sides, place)) * strides[place])
        return Candidates(clip(boxes, image_size), torch.sigmoid(best), label)

    def reference_detections(
        self,
        features: list[Tensor],
        outputs: HeadOutputs,
        *,
        image_size: tuple[int, int],
        score_threshold: float = 0.05,
        per_level: int = 1000,
        iou_threshold: float = 0.6,
        max_detections: int = 100,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """mmdetection's selection: best pairs above the threshold level by level, empty boxes dropped, class-wise NMS."""
        scores = [flatten([level], len(self.spec.classes)).float().sigmoid() for level in outputs.class_logits]
        sides = [flatten([level], 4 * (self.spec.reg_max + 1)) for level in outputs.box_regression]
        grid = [_places(level) for level in self._anchors(outputs.class_logits, scores[0].device)]
        found = []
        for image in range(len(scores[0])):

            def boxes(level: int, places: Tensor, image: int = image) -> tuple[Tensor, Tensor]:
                centres, strides = grid[level]
                distances = self._distances(sides[level][image, places]) * strides[places]
                return clip(_to_boxes(centres[places], distances), image_size), torch.ones_like(distances[:, 0])

            found.append(
                reference_selection(
                    [level[image] for level in scores],
                    boxes,
                    score_threshold=score_threshold,
                    per_level=per_level,
                    iou_threshold=iou_threshold,
                    max_detections=max_detections,
                )
            )
        return found

    def _distances(self, sides: Tensor) -> Tensor:
        """(..., 4 * (R + 1)) logits -> (..., 4) float32 in strides: each side's expected distance (equation 5).

        In float32: half precision steps by 1/128 between 8 and 16, a pixel on the level of stride 128.
        """
        bins = self.spec.reg_max + 1
        probability = torch.unflatten(sides.float(), -1, (4, bins)).softmax(dim=-1)
        return (probability * torch.arange(bins, dtype=torch.float32, device=sides.device)).sum(dim=-1)

    def _anchors(self, levels: list[Tensor], device: torch.device) -> list[Tensor]:
        """(N, 4) for each of the feature maps: one square at a place, centred at i * stride."""
        return [
            grid_anchors(
                [(int(level.shape[-2]), int(level.shape[-1]))],
                [stride],
                [base_anchors(stride, ANCHOR_SCALE, 1, (1.0,))],
            ).to(device)
            for level, stride in zip(levels, self.spec.strides, strict=True)
        ]


def _places(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4) -> their centres (N, 2) in pixels and strides (N, 1)."""
    return (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:3] - anchors[:, :1]) / ANCHOR_SCALE


def _to_boxes(centres: Tensor, distances: Tensor) -> Tensor:
    """(..., 2) and (..., 4) left, top, right, bottom -> (..., 4) xyxy."""
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
