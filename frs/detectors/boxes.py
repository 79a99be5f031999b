"""Boxes: areas, overlaps, and their coding against anchors (Faster R-CNN, Ren et al. 2015, equation 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16.0)
"""A predicted side is at most 62.5 times its anchor's: exp() must not overflow."""


def area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, 4) and (..., M, 4) -> (..., N, M), in square pixels."""
    width = torch.minimum(a[..., :, None, 2], b[..., None, :, 2]) - torch.maximum(
        a[..., :, None, 0], b[..., None, :, 0]
    )
    height = torch.minimum(a[..., :, None, 3], b[..., None, :, 3]) - torch.maximum(
        a[..., :, None, 1], b[..., None, :, 1]
    )
    return width.clamp(min=0.0) * height.clamp(min=0.0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, 4) and (..., M, 4) -> (..., N, M) in 0..1; two boxes without area overlap by 0."""
    shared = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return shared / union.clamp(min=1e-9)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """xyxy boxes against xyxy anchors, (..., 4) both -> (dx, dy, dw, dh), weights of one."""
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_size
    return torch.cat([shift, torch.log(size / anchor_size)], dim=-1)


def decode(deltas: Tensor, anchors: Tensor, *, bounded_below: bool = True) -> Tensor:
    """The inverse of `encode`; dw and dh are at most log(1000 / 16), and at least minus that if bounded_below."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * anchor_size
    log_scale = deltas[..., 2:].clamp(-MAX_LOG_SCALE if bounded_below else None, MAX_LOG_SCALE)
    half = torch.exp(log_scale) * anchor_size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """(..., 4) xyxy brought inside an image of (height, width), or (B, N, 4) inside images of (B, 2)."""
    if isinstance(size, Tensor):
        limits = size[:, None, [1, 0, 1, 0]].to(boxes.dtype)
    else:
        limits = boxes.new_tensor([float(size[1]), float(size[0])] * 2)
    return torch.minimum(boxes.clamp(min=0.0), limits)
