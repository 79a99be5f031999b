"""Which anchor is to find which object, by each object's own threshold: Adaptive Training Sample Selection (Zhang et al.,
"Bridging the Gap Between Anchor-based and Anchor-free Detection", 2020, algorithm 1), as mmdetection's assigner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frs.detectors.base import Targets
from frs.detectors.boxes import iou
from frs.detectors.matching import Matches, in_crowd, nothing_to_find

INSIDE = 0.01
"""Pixels that a positive anchor's centre must be away from each side of its object, inwards."""


@torch.no_grad()
def assign(levels: Sequence[Tensor], targets: Targets, *, nearest: int = 9, within: Tensor | None = None) -> Matches:
    """levels: (N, 4) xyxy for each level of the pyramid; two anchors or more in all. within: (B, N) bool over all levels,
    those that count, two or more of each image; None: all.

    An object's candidates are the `nearest` anchors of each level, by the distance of the centres. Positive: a candidate
    whose centre is inside the object, and whose IoU is at least the mean plus the standard deviation of all candidates'.
    Of several objects an anchor finds the one that it overlaps most. All others are negative.
    """
    anchors = torch.cat(list(levels))
    batch, count = targets.boxes.shape[:2]
    if count == 0:
        return nothing_to_find(batch, anchors, within)
    candidates = _nearest(levels, targets.boxes, nearest, within)  # (B, G, C)
    overlap = iou(targets.boxes[:, :, None], anchors[candidates])[:, :, 0]  # (B, G, C)
    if within is None:
        threshold = overlap.mean(dim=2, keepdim=True) + overlap.std(dim=2, keepdim=True)
    else:
        counts = within.gather(1, candidates.flatten(1)).view_as(candidates)
        overlap = overlap.masked_fill(~counts, -1.0)
        threshold = _threshold(overlap, counts)
    centres, boxes = _centres(anchors)[candidates], targets.boxes[:, :, None]
    margin = torch.cat([centres - boxes[..., :2], boxes[..., 2:] - centres], dim=-1).amin(dim=-1)  # (B, G, C)
    fits = (overlap >= threshold) & (margin > INSIDE) & targets.valid[..., None]

    claims = overlap.new_full((batch, count, len(anchors)), -1.0)
    claims.scatter_(2, candidates, overlap.masked_fill(~fits, -1.0))
    best, box = claims.max(dim=1)  # (B, N)
    positive = best >= 0
    negative = ~positive if within is None else ~positive & within
    if bool(targets.ignore.any()):
        free = ~in_crowd(anchors, targets)
        positive, negative = positive & free, negative & free
    return Matches(positive, negative, box * positive)


def _threshold(overlap: Tensor, counts: Tensor) -> Tensor:
    """Mean plus standard deviation (B, G, 1) of those of (B, G, C) that count."""
    number = counts.sum(dim=2, keepdim=True)
    mean = (overlap * counts).sum(dim=2, keepdim=True) / number
    variance = ((overlap - mean).square() * counts).sum(dim=2, keepdim=True) / (number - 1)
    return mean + variance.sqrt()


def _nearest(levels: Sequence[Tensor], boxes: Tensor, nearest: int, within: Tensor | None) -> Tensor:
    """Indices (B, G, C) into all anchors: the nearest of each level to each of the boxes (B, G, 4), those that count first."""
    found, first = [], 0
    for anchors in levels:
        apart = _centres(anchors) - _centres(boxes)[:, :, None]  # (B, G, N, 2)
        distance = apart.square().sum(dim=-1)
        if within is not None:
            distance = distance.masked_fill(~within[:, None, first : first + len(anchors)], torch.inf)
        found.append(distance.topk(min(nearest, len(anchors)), dim=2, largest=False).indices + first)
        first += len(anchors)
    return torch.cat(found, dim=2)


def _centres(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2
