"""Losses that several detectors share; in float32 whatever the precision around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, smooth_l1_loss


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, equation 5), element by element; any shape, targets 0 or 1."""
    logits = logits.float()
    probability = torch.sigmoid(logits)
    entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probability + targets - 2 * probability * targets  # 1 - p_t
    balance = 1 - alpha + (2 * alpha - 1) * targets  # alpha_t
    return balance * wrong**gamma * entropy


def box_distance(deltas: Tensor, wanted: Tensor, *, smooth: bool) -> Tensor:
    """L1 between coded boxes of any shape, element by element; smooth: a parabola below 1/9 (torchvision's Faster R-CNN)."""
    if smooth:
        return smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="none")
    return l1_loss(deltas, wanted, reduction="none")
