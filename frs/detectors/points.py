"""Points that look for objects: where they stand and which object each is to find (FCOS, Tian et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from frs.detectors.anchors import grid_anchors, padded_strides
from frs.detectors.base import Targets
from frs.detectors.boxes import area
from frs.detectors.matching import Matches, in_crowd, nothing_to_find

TORCHVISION_AREA = 1e8
"""torchvision ranks by this minus the area, in float32: areas are compared by eights of square pixels."""


def grid_cells(shapes: Sequence[tuple[int, int]], strides: Sequence[int], *, torchvision: bool) -> Tensor:
    """The points of all levels' feature maps of (H, W), as the squares of one stride around them: (sum of H * W, 4) xyxy.

    The first point is at half a stride with mmdetection; with torchvision at 0, and the next as far on as `padded_strides`
    says.
    """
    half = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    if torchvision:
        return grid_anchors(shapes, padded_strides(shapes, strides[0]), [half * stride for stride in strides])
    return grid_anchors(shapes, strides, [(half + 0.5) * stride for stride in strides])


def centres(cells: Tensor) -> Tensor:
    """(..., 4) xyxy -> (..., 2) xy."""
    return (cells[..., :2] + cells[..., 2:]) / 2


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Points (..., 2) and pixels (..., 4) to the left, top, right and bottom -> (..., 4) xyxy."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Of points (..., 2) inside boxes (..., 4) xyxy, in 0..1 (equation 3): 1 in the middle, 0 at a side."""
    near, far = points - boxes[..., :2], boxes[..., 2:] - points
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(dim=-1).sqrt()


@torch.no_grad()
def assign(cells: Tensor, targets: Targets, *, radius: float, torchvision: bool) -> Matches:
    """cells: (N, 4) of `grid_cells`, all levels.

    Positive: a point inside an object whose farthest side is 4 to 8 strides away (on the first level from 0, on the last
    without end); of several such objects the smallest is its own. radius: a point must be less than so many strides from
    the object's centre, in x and in y; 0: anywhere inside. torchvision: the bounds of the ranges belong to no level; with
    mmdetection to both. A point is neither positive nor negative where a crowd region covers its cell.
    """
    batch, count = targets.boxes.shape[:2]
    if count == 0:
        return nothing_to_find(batch, cells)
    x, y = centres(cells).unbind(dim=-1)  # (N,)
    stride = cells[:, 2] - cells[:, 0]
    left, top, right, bottom = targets.boxes[..., None].unbind(dim=2)  # (B, G, 1)
    sides = (x - left, y - top, right - x, bottom - y)  # (B, G, N)
    farthest = reduce(torch.maximum, sides)
    least = (4 * stride).masked_fill(stride == stride.min(), 0.0)
    most = (8 * stride).masked_fill(stride == stride.max(), torch.inf)
    in_range = (farthest > least) & (farthest < most) if torchvision else (farthest >= least) & (farthest <= most)
    candidate = targets.valid[..., None] & in_range & (reduce(torch.minimum, sides) > 0)
    if radius:
        shift = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs())
        candidate &= shift < radius * stride
    size = area(targets.boxes)[..., None]
    smallest, box = torch.where(candidate, size - TORCHVISION_AREA if torchvision else size, torch.inf).min(dim=1)
    positive = smallest < torch.inf  # (B, N)
    negative = ~positive
    if bool(targets.ignore.any()):
        covered = in_crowd(cells, targets)
        negative = negative & ~covered
        positive = positive & ~covered
    return Matches(positive, negative, box * positive)
