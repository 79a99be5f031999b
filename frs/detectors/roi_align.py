"""What a box shows of a pyramid: RoIAlign (He et al., "Mask R-CNN", 2017, section 3) on the level that fits its size.

`pooled` is torchvision's operator, for training and reference. `sampled` is the same arithmetic at a fixed number of samples
in operators that any runtime has, with static shapes:

    [P2 .. P5] -> one canvas, level below level (B, C, sum of H, W of P2) -> GridSample at every sample of every box
    (B, C, P * 14, 14) -> average of 2 x 2 samples -> (B, P, C, 7, 7)

One canvas, because a box's level is data: sampling all levels and masking would cost four times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad
from torchvision.ops import roi_align

from frs.detectors.boxes import area

SIZE = 7
"""Cells of a pooled box, each way."""

SAMPLES = 2
"""Samples of a cell, each way, in `sampled`."""

_CANONICAL = 56.0
"""A box of this side belongs to the first level, one of twice the side to the next (Lin et al. 2017, equation 1)."""

_EPSILON = 1e-6


def level_of(boxes: Tensor, levels: int, *, torchvision: bool) -> Tensor:
    """(..., 4) xyxy in pixels of the input -> (...) int64: floor(log2(sqrt(area) / 56)) in 0 .. levels - 1.

    Written as comparisons, which are exact. mmdetection adds 1e-6 to the quotient, torchvision to its logarithm.
    """
    size = torch.sqrt(area(boxes)) / _CANONICAL
    level = torch.zeros_like(size, dtype=torch.int64)
    for k in range(1, levels):
        level = level + (size >= (2 ** (k - _EPSILON) if torchvision else 2**k - _EPSILON)).long()
    return level


def pooled(
    features: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    strides: Sequence[int],
    *,
    samples: int,
    aligned: bool,
) -> Tensor:
    """features: (B, C, H, W) a level; boxes: (R, 4) in pixels of the input; image, level: (R,) int64 -> (R, C, 7, 7) float32.

    samples: of a cell, each way; 0: as many as it has places of the map. aligned: places are at the centres of their cells.
    """
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)  # (R, 5)
    found = boxes.new_zeros(len(boxes), features[0].shape[1], SIZE, SIZE)
    for number, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        index = (level == number).nonzero()[:, 0]
        cells = roi_align(feature.float(), rois[index], SIZE, 1 / stride, samples, aligned)
        found = found.index_copy(0, index, cells)
    return found


def sampled(
    features: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[int], *, aligned: bool
) -> Tensor:
    """As `pooled` with two samples: boxes (B, P, 4), level (B, P) -> (B, P, C, 7, 7) float32; exportable."""
    canvas, tops = _canvas(features)
    shapes = [(feature.shape[2], feature.shape[3]) for feature in features]
    table = boxes.new_tensor([(1 / s, h, w, top) for s, (h, w), top in zip(strides, shapes, tops, strict=True)])
    scale, height, width, top = table[level].unbind(dim=-1)  # (B, P) each
    corners = boxes * scale[..., None] - (0.5 if aligned else 0.0)
    x, inside_x = _samples(corners[..., 0], corners[..., 2], width, aligned=aligned)  # (B, P, 14)
    y, inside_y = _samples(corners[..., 1], corners[..., 3], height, aligned=aligned)
    x = 2.0 * x / (canvas.shape[3] - 1) - 1.0  # as grid_sample counts: -1 is the first place, 1 the last
    y = 2.0 * (y + top[..., None]) / (canvas.shape[2] - 1) - 1.0
    side = SIZE * SAMPLES
    grid = torch.stack([x[..., None, :].expand(-1, -1, side, -1), y[..., None].expand(-1, -1, -1, side)], dim=-1)
    inside = inside_y[..., None] * inside_x[..., None, :]  # (B, P, 14, 14)
    found = grid_sample(canvas, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=True)
    found = avg_pool2d(found * inside.flatten(1, 2)[:, None], SAMPLES)  # (B, C, P * 7, 7)
    return torch.unflatten(found, 2, (-1, SIZE)).transpose(1, 2)


def _canvas(features: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """All levels in one map, float32, and the row that each begins in."""
    width = features[0].shape[3]
    tops = [sum(feature.shape[2] for feature in features[:i]) for i in range(len(features))]
    return torch.cat([pad(feature.float(), (0, width - feature.shape[3])) for feature in features], dim=2), tops


def _samples(start: Tensor, end: Tensor, size: Tensor, *, aligned: bool) -> tuple[Tensor, Tensor]:
    """(B, P) in places of the map -> the samples along one axis, (B, P, 14): positions on the map, and 1 or 0 as float.

    0: farther outside than a place, where RoIAlign counts nothing; nearer it takes the border's value.
    """
    length = end - start
    if not aligned:
        length = length.clamp(min=1.0)
    steps = (torch.arange(SIZE * SAMPLES, device=start.device, dtype=start.dtype) + 0.5) / (SIZE * SAMPLES)
    at = start[..., None] + steps * length[..., None]
    inside = ((at >= -1.0) & (at <= size[..., None])).to(start.dtype)
    return torch.minimum(at.clamp(min=0.0), size[..., None] - 1.0), inside
