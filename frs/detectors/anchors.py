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
