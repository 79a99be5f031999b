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
        """() float32: positive anchors of the batch over all ranks, at least one an image; what mmdetection's losses are
        divided by."""
        return normaliser(self.positive.sum(dim=1).clamp(min=1).sum())


@torch.no_grad()
def match(
    anchors: Tensor,
    targets: Targets,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    least_iou: float = 0.0,
    conventions: str = "mmdet",
) -> Matches:
    """anchors: (N, 4) or, of each image its own, (B, N, 4) xyxy.

    Positive: an IoU of at least `positive_iou` with an object, or no anchor overlaps an object more (ties included) and by
    at least `least_iou` (mmdetection's min_pos_iou; infinity: never); an object that no anchor touches has none, where both
    libraries would take all that miss it. Negative: below `negative_iou` with every object. An anchor's object is the one
    that it overlaps most, but with conventions "mmdet" (MaxIoUAssigner) one whose best anchor it is, of several the last;
    with "torchvision" (Matcher) not.
    """
    batch, count = targets.boxes.shape[:2]
    if count == 0:
        everything = torch.ones(batch, anchors.shape[-2], dtype=torch.bool, device=anchors.device)
        return Matches(~everything, everything, torch.zeros_like(everything, dtype=torch.int64))
    overlap = iou(targets.boxes, anchors)  # (B, G, N)
    overlap = overlap.masked_fill(~targets.valid[..., None], -1.0)
    best, box = overlap.max(dim=1)  # (B, N)
    most = overlap.amax(dim=2, keepdim=True)  # (B, G, 1)
    best_of = (overlap == most) & (most > 0) & (most >= least_iou)  # (B, G, N): the object's best anchors
    best_of_any = best_of.any(dim=1)
    if conventions == "mmdet":
        number = torch.arange(count, dtype=torch.int32, device=anchors.device)[:, None]
        box = torch.where(best_of_any, (best_of * number).amax(dim=1).long(), box)
    positive = (best >= positive_iou) | best_of_any
    negative = (best < negative_iou) & ~positive
    if bool(targets.ignore.any()):
        crowd = targets.boxes * targets.ignore[..., None]
        covered = (intersection(crowd, anchors) / area(anchors)[..., None, :]).amax(dim=1) > CROWD_COVER
        negative = negative & ~covered
        positive = positive & ~covered
    return Matches(positive, negative, box * positive)
