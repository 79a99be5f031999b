"""Which anchor is to find which object, by overlap (RetinaNet, Lin et al. 2017, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frs.detectors.base import Targets
from frs.detectors.boxes import area, intersection, iou
from frs.distributed import normaliser

CROWD_COVER = 0.5
"""An anchor of which more than this lies in a crowd region is neither positive nor negative."""


@dataclass
class Matches:
    """positive, negative: (B, N) bool, exclusive; an anchor that is neither is left out of the loss. box: (B, N) int64,
    the index of the object that a positive anchor is to find, 0 elsewhere."""

    positive: Tensor
    negative: Tensor
    box: Tensor

    def positives(self) -> Tensor:
        """() float32: positive anchors of the batch over all ranks, at least one; what the losses are divided by."""
        return normaliser(self.positive.sum())


@torch.no_grad()
def match(
    anchors: Tensor,
    targets: Targets,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    best_iou: float | None = 0.0,
    last_best_wins: bool = False,
    within: Tensor | None = None,
) -> Matches:
    """anchors: (N, 4), or (B, N, 4) where each image has its own; xyxy. within: (B, N) bool, those that count; None: all.

    Positive: an IoU of at least `positive_iou` with an object, or no anchor overlaps an object more (ties included) and that
    IoU is at least `best_iou`; None: the first alone. An object that no anchor touches is found by none, where mmdetection
    and torchvision give it all that miss it. Negative: below `negative_iou` with every object. An object is the one that
    the anchor overlaps most; last_best_wins: where an anchor is the best of objects, the last of those, as mmdetection
    assigns it.
    """
    batch, count = targets.boxes.shape[:2]
    if count == 0:
        return nothing_to_find(batch, anchors, within)
    overlap = iou(targets.boxes, anchors)  # (B, G, N)
    overlap = overlap.masked_fill(~targets.valid[..., None], -1.0)
    if within is not None:
        overlap = overlap.masked_fill(~within[:, None], -1.0)
    best, box = overlap.max(dim=1)  # (B, N)
    positive = best >= positive_iou
    if best_iou is not None:
        most = overlap.amax(dim=2, keepdim=True)  # (B, G, 1)
        best_of_object = (overlap == most) & (most > 0) & (most >= best_iou)
        positive = positive | best_of_object.any(dim=1)
        if last_best_wins:
            number = torch.arange(1, count + 1, dtype=torch.int32, device=box.device)[:, None]
            last = (best_of_object * number).amax(dim=1).long()
            box = torch.where(last > 0, last - 1, box)
    negative = (best < negative_iou) & ~positive
    if within is not None:
        negative = negative & within
    if bool(targets.ignore.any()):
        free = ~in_crowd(anchors, targets)
        positive, negative = positive & free, negative & free
    return Matches(positive, negative, box * positive)


def nothing_to_find(batch: int, anchors: Tensor, within: Tensor | None = None) -> Matches:
    """Of a batch without a box: all anchors, (N, 4) or (B, N, 4), that are `within` are negative."""
    everything = torch.ones(batch, anchors.shape[-2], dtype=torch.bool, device=anchors.device)
    negative = everything if within is None else within
    return Matches(~everything, negative, torch.zeros_like(everything, dtype=torch.int64))


def in_crowd(anchors: Tensor, targets: Targets) -> Tensor:
    """(B, N) bool: whether more than `CROWD_COVER` of the anchor, of (N, 4) or (B, N, 4), lies in a crowd region."""
    crowd = targets.boxes * targets.ignore[..., None]
    return (intersection(crowd, anchors) / area(anchors)[..., None, :]).amax(dim=1) > CROWD_COVER
