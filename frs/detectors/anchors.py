"""Anchors of RetinaNet (Lin et al. 2017, section 4), as mmdetection or as torchvision lays them.

mmdetection: centred at i * stride, not rounded. torchvision: base anchors rounded to whole pixels, sizes cut down to whole
ones before that, and a map's stride is the input's side // the map's, which is another one where that does not come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(stride: int, scale: float, octaves: int, ratios: Sequence[float], *, rounded: bool = False) -> Tensor:
    """(A, 4) xyxy around the origin; ratio-major, then size. Sides scale * stride * 2^(k / octaves); ratio = h / w.

    rounded: as torchvision has them.
    """
    sizes = [scale * stride * 2 ** (k / octaves) for k in range(octaves)]
    if rounded:
        sizes = [int(size) for size in sizes]
    sides = [(size / ratio**0.5, size * ratio**0.5) for ratio in ratios for size in sizes]
    corners = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])
    return corners.round() if rounded else corners


def padded_strides(shapes: Sequence[tuple[int, int]], finest: int) -> list[tuple[int, int]]:
    """torchvision's (vertical, horizontal) strides of maps (H, W), of which the first has the stride `finest`.

    The input's sides are taken to be multiples of it. 256 x 320 has a P7 of 2 x 3, with strides of 128 and 106.
    """
    height, width = shapes[0][0] * finest, shapes[0][1] * finest
    return [(height // rows, width // columns) for rows, columns in shapes]


def grid_anchors(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int | tuple[int, int]], bases: Sequence[Tensor]
) -> Tensor:
    """All levels' anchors for feature maps of (H, W): (sum of H * W * A, 4), row-major, anchor last.

    strides: of each level; a pair is (vertical, horizontal).
    """
    levels = []
    for (height, width), stride, base in zip(shapes, strides, bases, strict=True):
        down, right = stride if isinstance(stride, tuple) else (stride, stride)
        y, x = torch.meshgrid(torch.arange(height) * down, torch.arange(width) * right, indexing="ij")
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
