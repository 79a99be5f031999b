"""GFL's losses of a box (Li et al., "Generalized Focal Loss", 2020), in float32; that of its classes is in focal.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """DFL (equation 6): the cross-entropy of the two bins beside a distance, each by its nearness; (..., R + 1) -> (...).

    distance: (...), from 0 to below R.
    """
    log_probability = log_softmax(logits.float(), dim=-1)
    left = distance.floor()
    bins = torch.stack([left, left + 1], dim=-1).long()
    nearness = torch.stack([left + 1 - distance, distance - left], dim=-1)
    return -(log_probability.gather(-1, bins) * nearness).sum(dim=-1)
