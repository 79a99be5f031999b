"""Losses that several detectors share; in float32 whatever the precision around them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import l1_loss, smooth_l1_loss


def box_distance(deltas: Tensor, wanted: Tensor, *, smooth: bool) -> Tensor:
    """L1 between coded boxes of any shape, element by element; smooth: a parabola below 1/9 (torchvision's Faster R-CNN)."""
    if smooth:
        return smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="none")
    return l1_loss(deltas, wanted, reduction="none")
