"""Anchors of RetinaNet (Lin et al. 2017, section 4), as mmdetection lays them: centred at i * stride, not rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(stride: int, scale: float, octaves: int, ratios: Sequence[float]) -> Tensor:
    """(A, 4) xyxy around the origin; ratio-major, then size. Sides scale * stride * 2^(k / octaves); ratio = h / w."""
    sizes = [scale * stride * 2 ** (k / octaves) for k in range(octaves)]
    sides = [(size / ratio**0.5, size * ratio**0.5) for ratio in ratios for size in sizes]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


def grid_anchors(shapes: Sequence[tuple[int, int]], strides: Sequence[int], bases: Sequence[Tensor]) -> Tensor:
    """All levels' anchors for feature maps of (H, W): (sum of H * W * A, 4), row-major, anchor last."""
    levels = []
    for (height, width), stride, base in zip(shapes, strides, bases, strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((centres + base).reshape(-1, 4))
    return torch.cat(levels)


def shapes(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(H, W) of each of the (B, C, H, W)."""
    return [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]


def places_within(of: Sequence[tuple[int, int]], strides: Sequence[int], each: int, sizes: Tensor) -> Tensor:
    """(B, N) bool, in the order of `grid_anchors` with `each` anchors at a place: those that mmdetection trains of each image.

    sizes: (B, 2), heights and widths. Of an image they are those that it would have alone, padded to multiples of 32; what
    lies beyond is padding that only the batch's larger images bring (mmdetection's `valid_flags`).
    """
    alone = sizes + -sizes % 32
    levels = []
    for (height, width), stride in zip(of, strides, strict=True):
        rows = torch.arange(height, device=sizes.device) * stride < alone[:, :1]  # (B, H)
        columns = torch.arange(width, device=sizes.device) * stride < alone[:, 1:]  # (B, W)
        levels.append((rows[:, :, None] & columns[:, None, :]).flatten(1).repeat_interleave(each, dim=1))
    return torch.cat(levels, dim=1)
