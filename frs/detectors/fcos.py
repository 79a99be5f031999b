"""FCOS (Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019), by default as mmdetection builds it.

images (B, 3, H, W) -> backbone [C3, C4, C5] -> FPN [P3 .. P7] -> two towers of 3x3 convolutions with GroupNorm, shared by
the levels -> class logits (B, K, H/s, W/s), box regression (B, 4, H/s, W/s) and centerness logits (B, 1, H/s, W/s)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu
from torchvision.ops import generalized_box_iou_loss

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
from frs.detectors.focal import focal_sum
from frs.detectors.fpn import FPN
from frs.detectors.points import assign, boxes_around, centerness, centres, grid_cells
from frs.detectors.spec import DetectorSpec, check_choices, check_numbers
from frs.distributed import normaliser

_USUAL: dict[str, dict[str, Any]] = {
    "mmdet": {"centerness_on": "class", "box_activation": "exp", "box_loss": "iou", "center_sampling": 0.0},
    "torchvision": {
        "tower_bias": True,
        "centerness_on": "regression",
        "box_activation": "relu",
        "box_loss": "giou",
        "center_sampling": 1.5,
    },
}
LEAST_IOU = 1e-6
"""mmdetection's: a box beside its object has a loss of -log of this."""


@dataclass(frozen=True)
class FCOSSpec(DetectorSpec):
    """All that is needed to build the network again; the defaults are mmdetection's `fcos_r50-caffe_fpn_gn-head`.

    conventions: "mmdet" or "torchvision", whose points, assignment, losses and scores are followed, and what is meant by
    None in the fields after relu_before_p7. head_norm: "none" or "group"; p6_source: "c5" or "p5"; tower_bias: of the
    towers' convolutions (mmdet: where there is no norm; torchvision: always); centerness_on: the tower, "class" or
    "regression"; box_activation: of the regression x, "exp" (exp(scale * x) pixels), "scaled_relu" (max(scale * x, 0)
    strides) or "relu" (max(x, 0) strides), with a learned scale a level; box_loss: "iou" (-log) or "giou" (1 -);
    center_sampling: radius in strides, 0 for none.
    """

    family: ClassVar[str] = "fcos"
    conventions: str = "mmdet"
    head_norm: str = "group"
    p6_source: str = "p5"
    relu_before_p7: bool = True
    tower_bias: bool | None = None
    centerness_on: str | None = None
    box_activation: str | None = None
    box_loss: str | None = None
    center_sampling: float | None = None

    def settled(self) -> FCOSSpec:
        """With what the conventions have in place of None."""
        usual = _USUAL[self.conventions]
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})

    def _check_own(self) -> None:
        check_choices(
            conventions=(self.conventions, ("mmdet", "torchvision")),
            head_norm=(self.head_norm, ("none", "group")),
            p6_source=(self.p6_source, ("c5", "p5")),
        )
        settled = self.settled()
        check_choices(
            centerness_on=(settled.centerness_on, ("class", "regression")),
            box_activation=(settled.box_activation, ("exp", "scaled_relu", "relu")),
            box_loss=(settled.box_loss, ("iou", "giou")),
        )
        check_numbers("center_sampling", (settled.center_sampling,))
        if type(self.relu_before_p7) is not bool or type(self.tower_bias) not in (bool, type(None)):
            raise ValueError(
                f"relu_before_p7 {self.relu_before_p7!r} or tower_bias {self.tower_bias!r} is not yes or no"
            )


@dataclass
class FCOSOutputs(HeadOutputs):
    """box_regression: float32 distances to the left, top, right and bottom, in pixels (but with "relu" in strides), as the
    originals' heads answer; centerness: logits (B, 1, H, W) a level."""

    centerness: list[Tensor]


class FCOS(Detector):
    """One network for training, reference and export; see the module's first lines for the shapes."""

    spec: FCOSSpec

    def __init__(self, spec: FCOSSpec) -> None:
        super().__init__(spec.settled())
        spec = self.spec
        self.torchvision = spec.conventions == "torchvision"
        self.fpn = FPN(
            self.backbone.channels,
            spec.fpn_channels,
            levels=spec.levels,
            p6_source=spec.p6_source,
            relu_before_p7=spec.relu_before_p7,
        )
        width = spec.head_channels or spec.fpn_channels
        self.class_tower = tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm, bias=spec.tower_bias)
        self.box_tower = tower(spec.fpn_channels, width, spec.head_depth, spec.head_norm, bias=spec.tower_bias)
        last = width if spec.head_depth else spec.fpn_channels
        self.class_output = nn.Conv2d(last, len(spec.classes), 3, padding=1)
        self.box_output = nn.Conv2d(last, 4, 3, padding=1)
        self.centerness_output = nn.Conv2d(last, 1, 3, padding=1)
        scaled = 0 if spec.box_activation == "relu" else spec.levels
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(scaled))
        initialise(self.class_tower, self.box_tower, self.class_output, self.box_output, self.centerness_output)
        set_prior(self.class_output)

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.backbone(images))
        return levels

    def head(self, features: list[Tensor]) -> FCOSOutputs:
        classes = [self.class_tower(level) for level in features]
        boxes = [self.box_tower(level) for level in features]
        return FCOSOutputs(
            [self.class_output(level) for level in classes],
            [self._distances(i, self.box_output(level)) for i, level in enumerate(boxes)],
            [self.centerness_output(level) for level in (classes if self.spec.centerness_on == "class" else boxes)],
        )

    def class_logits(self, features: list[Tensor]) -> list[Tensor]:
        return [self.class_output(self.class_tower(level)) for level in features]

    def loss(self, features: list[Tensor], outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Focal loss, IoU or GIoU loss of the positive points' boxes, and cross-entropy of their centerness.

        Each is summed over the batch and divided by its positive points; with mmdetection the box loss is weighted by the
        centerness to be found, and divided by the sum of that.
        """
        assert isinstance(outputs, FCOSOutputs)
        cells = self._cells(outputs).to(targets.boxes.device)  # (N, 4)
        matches = assign(cells, targets, radius=self.spec.center_sampling or 0.0, torchvision=self.torchvision)
        positives = matches.positives()

        image, place = matches.positive.nonzero(as_tuple=True)  # (P,)
        box = matches.box[image, place]
        pairs, counted = (image, place, targets.labels[image, box]), matches.positive | matches.negative
        logits = per_level(outputs.class_logits, len(self.spec.classes))
        classification = focal_sum(logits, pairs, counted=counted).sum() / positives

        points, truth = centres(cells)[place], targets.boxes[image, box]
        wanted_centerness = centerness(points, truth)
        error = self._box_error(boxes_around(points, self._pixels(outputs)[image, place]), truth)
        if self.torchvision:
            box_loss = error.sum() / positives
        else:
            box_loss = (wanted_centerness * error).sum() / normaliser(wanted_centerness.sum(), least=1e-6)

        found = flatten(outputs.centerness, 1)[image, place, 0].float()
        entropy = binary_cross_entropy_with_logits(found, wanted_centerness, reduction="sum")
        return {"classification": classification, "box": box_loss, "centerness": entropy / positives}

    def decode(
        self, features: list[Tensor], outputs: HeadOutputs, *, candidates: int, image_size: tuple[int, int]
    ) -> Candidates:
        """Ranked by the final score, centerness included; so is what the graph's threshold is held against.

        mmdetection's reference holds its threshold against the class score alone: the graph finds less at the same one.
        """
        assert isinstance(outputs, FCOSOutputs)
        classes, centred = self._probabilities(outputs)
        best, place, label = best_pairs(classes * centred, candidates)
        points = centres(self._cells(outputs).to(classes.device))  # (N, 2), a constant
        boxes = clip(boxes_around(points[place], select(self._pixels(outputs), place)), image_size)
        return Candidates(boxes, best.sqrt() if self.torchvision else best, label)

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
        """Threshold and best pairs level by level, class-wise NMS by the score, which is the answer's too.

        mmdetection: threshold and ranking by the class score alone, then times centerness; boxes without area are dropped.
        torchvision: all by the root of class score times centerness; nothing is dropped.
        """
        assert isinstance(outputs, FCOSOutputs)
        sizes = [level[0, 0].numel() for level in outputs.class_logits]
        classes, centred = self._probabilities(outputs)
        factor = centred[..., 0]
        if self.torchvision:
            classes, factor = (classes * centred).sqrt(), torch.ones_like(factor)
        points = centres(self._cells(outputs).to(classes.device))
        boxes = clip(boxes_around(points, self._pixels(outputs)), image_size)  # (B, N, 4)
        found = []
        for image in range(len(classes)):
            parts = list(zip(torch.split(boxes[image], sizes), torch.split(factor[image], sizes), strict=True))

            def decoded(level: int, places: Tensor, of: list[Any] = parts) -> tuple[Tensor, Tensor]:
                return of[level][0][places], of[level][1][places]

            found.append(
                reference_selection(
                    torch.split(classes[image], sizes),
                    decoded,
                    score_threshold=score_threshold,
                    per_level=per_level,
                    iou_threshold=iou_threshold,
                    max_detections=max_detections,
                    drop_empty=not self.torchvision,
                )
            )
        return found

    def _cells(self, outputs: HeadOutputs) -> Tensor:
        """(N, 4) for feature maps of these sizes."""
        shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in outputs.class_logits]
        return grid_cells(shapes, self.spec.strides, torchvision=self.torchvision)

    def _distances(self, level: int, regression: Tensor) -> Tensor:
        """(B, 4, H, W) of the last convolution -> what `FCOSOutputs` says, in float32: exp() of a float16 would overflow."""
        x = regression.float()
        if self.spec.box_activation == "relu":
            return relu(x)
        x = x * self.scales[level].float()
        return x.exp() if self.spec.box_activation == "exp" else relu(x) * self.spec.strides[level]

    def _pixels(self, outputs: HeadOutputs) -> Tensor:
        """(B, N, 4) float32: pixels to the left, top, right and bottom."""
        strides = self.spec.strides if self.spec.box_activation == "relu" else (1,) * self.spec.levels
        levels = [level * stride for level, stride in zip(outputs.box_regression, strides, strict=True)]
        return flatten(levels, 4)

    def _probabilities(self, outputs: FCOSOutputs) -> tuple[Tensor, Tensor]:
        """Of the classes (B, N, K) and of being central (B, N, 1)."""
        logits = flatten(outputs.class_logits, len(self.spec.classes)).float()
        return logits.sigmoid(), flatten(outputs.centerness, 1).float().sigmoid()

    def _box_error(self, boxes: Tensor, truth: Tensor) -> Tensor:
        """Of each of (P, 4) xyxy: (P,)."""
        if self.spec.box_loss == "giou":
            error: Tensor = generalized_box_iou_loss(boxes, truth)
            return error
        return -iou(boxes[:, None], truth[:, None]).flatten().clamp(min=LEAST_IOU).log()
