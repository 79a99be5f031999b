"""The region proposal network of Faster R-CNN (Ren et al. 2015, section 3.1), on a pyramid (Lin et al. 2017, section 4.1).

features (B, C, H/s, W/s) of each level -> 3x3 convolutions, shared by the levels -> objectness (B, A, H/s, W/s) and box
regression (B, A*4, H/s, W/s) -> the best boxes of each level after NMS
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torchvision.ops import batched_nms

from frs.detectors.anchors import base_anchors, places_within, shapes
from frs.detectors.base import HeadOutputs, Targets
from frs.detectors.boxes import clip, decode, encode
from frs.detectors.cluster_nms import cluster_nms
from frs.detectors.dense import flatten, initialise, select, tower
from frs.detectors.losses import box_distance
from frs.detectors.matching import Matches, match
from frs.detectors.sampling import sample
from frs.distributed import normaliser

NMS_IOU = 0.7
ROUNDS = 16
"""Of Cluster-NMS over the exported graph's proposals."""

_NEVER = -1e9
"""The logit of what is no proposal."""


class RPN(nn.Module):
    """depth: 3x3 convolutions, `width` wide; scale: an anchor's side in strides; ratios: height over width; conventions:
    "mmdet" or "torchvision"."""

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        *,
        strides: Sequence[int],
        scale: float,
        ratios: Sequence[float],
        conventions: str,
    ) -> None:
        super().__init__()
        self.tower = tower(channels, width, depth, "none")
        last = width if depth else channels
        self.class_output = nn.Conv2d(last, len(ratios), 1)
        self.box_output = nn.Conv2d(last, len(ratios) * 4, 1)
        self.strides, self.scale, self.ratios = tuple(strides), scale, tuple(ratios)
        self.torchvision = conventions == "torchvision"
        initialise(self)

    def forward(self, features: list[Tensor]) -> HeadOutputs:
        towers = [self.tower(level) for level in features]
        return HeadOutputs([self.class_output(t) for t in towers], [self.box_output(t) for t in towers])

    def objectness(self, features: list[Tensor]) -> list[Tensor]:
        return [self.class_output(self.tower(level)) for level in features]

    def anchors(self, levels: list[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """(H * W * A, 4) for each level; image_size: of the input with its padding. torchvision rounds the sides, and spreads
        a level's places over the whole input: where the stride does not divide it they are closer than the stride."""
        found = []
        for level, stride in zip(levels, self.strides, strict=True):
            base = base_anchors(stride, self.scale, 1, self.ratios)
            height, width = int(level.shape[-2]), int(level.shape[-1])
            steps = (stride, stride)
            if self.torchvision:
                base = base.round()
                steps = (image_size[0] // height, image_size[1] // width)
            y, x = torch.meshgrid(torch.arange(height) * steps[0], torch.arange(width) * steps[1], indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            found.append((centres + base).reshape(-1, 4).to(level.device))
        return found

    def loss(self, outputs: HeadOutputs, targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Cross entropy of 256 sampled anchors an image, half of them positive at most, and the positives' box loss, both
        divided by the anchors sampled."""
        anchors = torch.cat(self.anchors(outputs.class_logits, image_size))
        logits = flatten(outputs.class_logits, 1)[..., 0].float()  # (B, N)
        deltas = flatten(outputs.box_regression, 4).float()  # (B, N, 4)
        within = None
        if targets.sizes is not None and not self.torchvision:
            within = places_within(shapes(outputs.class_logits), self.strides, len(self.ratios), targets.sizes)
        matches = self.match(anchors, targets, within)
        positive, negative = sample(matches.positive, matches.negative, count=256, positive_fraction=0.5)
        total = normaliser(self._counted(positive, negative))

        chosen = positive | negative
        classification = binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        image, anchor = positive.nonzero(as_tuple=True)
        coded = encode(targets.boxes[image, matches.box[image, anchor]], anchors[anchor])
        distance = box_distance(deltas[image, anchor], coded, smooth=self.torchvision)
        return {
            "rpn_classification": (classification * chosen).sum() / total,
            "rpn_box": distance.sum() / total,
        }

    def match(self, anchors: Tensor, targets: Targets, within: Tensor | None = None) -> Matches:
        """Positive from an IoU of 0.7, negative below 0.3; an object's best anchor is positive: in mmdetection from 0.3, and
        for the last of the objects whose best it is; in torchvision always, and for the object that it overlaps most."""
        return match(
            anchors,
            targets,
            positive_iou=0.7,
            negative_iou=0.3,
            best_iou=0.0 if self.torchvision else 0.3,
            last_best_wins=not self.torchvision,
            within=within,
        )

    def _counted(self, positive: Tensor, negative: Tensor) -> Tensor:
        """() what the losses are divided by: the samples; mmdetection counts at least one of each kind in an image."""
        least = 0 if self.torchvision else 1
        return (positive.sum(dim=1).clamp(min=least) + negative.sum(dim=1).clamp(min=least)).sum()

    @torch.no_grad()
    def proposals(
        self, outputs: HeadOutputs, image_size: tuple[int, int] | Tensor, *, per_level: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4), best first, and which of them are there (B, P) bool: the `per_level` best of each level, clipped,
        those without area dropped, NMS within each level, and the `total` best of what is left."""
        boxes, logits = (torch.cat(part, dim=1) for part in self._best(outputs, image_size, per_level))
        counts = [min(per_level, level[0].numel()) for level in outputs.class_logits]
        level = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(boxes.device)
        large = self._large(boxes)
        kept = torch.zeros_like(large)
        for image in range(len(boxes)):
            index = large[image].nonzero()[:, 0]
            survivors = batched_nms(boxes[image, index], logits[image, index], level[index], NMS_IOU)
            kept[image, index[survivors]] = True
        best, index = logits.masked_fill(~kept, _NEVER).topk(min(total, logits.shape[1]))
        return select(boxes, index), best > _NEVER

    def graph_proposals(self, outputs: HeadOutputs, image_size: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
        """The rule of `proposals` with `count` for both numbers, and Cluster-NMS; static shapes, exportable."""
        boxes, logits = self._best(outputs, image_size, count)
        most = max(level.shape[1] for level in boxes)
        # Levels with fewer places than asked for are filled up, so that all of them go through NMS as one batch.
        boxes = [pad(level, (0, 0, 0, most - level.shape[1])) for level in boxes]
        logits = [pad(level, (0, most - level.shape[1]), value=_NEVER) for level in logits]
        levels = torch.stack(boxes, dim=1)  # (B, L, k, 4)
        keep = cluster_nms(levels.flatten(0, 1), None, iou_threshold=NMS_IOU, rounds=ROUNDS)  # (B * L, k)
        keep = torch.unflatten(keep, 0, (-1, len(boxes))).flatten(1)
        found = levels.flatten(1, 2)  # (B, L * k, 4)
        alive = (keep > 0.5) & self._large(found)
        best, index = torch.where(alive, torch.cat(logits, dim=1), _NEVER).topk(min(count, len(boxes) * most))
        return select(found, index), best > _NEVER

    def _best(
        self, outputs: HeadOutputs, image_size: tuple[int, int] | Tensor, count: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each level the boxes (B, k, 4), clipped, and logits (B, k) of its best places, in descending order."""
        boxes, logits = [], []
        finest, stride = outputs.class_logits[0], self.strides[0]
        whole = finest.shape[-2] * stride, finest.shape[-1] * stride  # what lies beyond the image is padding
        levels = zip(
            self.anchors(outputs.class_logits, whole), outputs.class_logits, outputs.box_regression, strict=True
        )
        for anchors, objectness, regression in levels:
            flat = flatten([objectness], 1)[..., 0].float()
            best, place = flat.topk(min(count, flat.shape[1]))
            deltas = select(flatten([regression], 4).float(), place)
            decoded = decode(deltas, anchors[place], bounded_below=not self.torchvision)
            boxes.append(clip(decoded, image_size))
            logits.append(best)
        return boxes, logits

    def _large(self, boxes: Tensor) -> Tensor:
        """(..., 4) -> (...) bool: larger than nothing; in torchvision at least a thousandth of a pixel each way."""
        size = boxes[..., 2:] - boxes[..., :2]
        large = size >= 1e-3 if self.torchvision else size > 0.0
        return large[..., 0] & large[..., 1]
