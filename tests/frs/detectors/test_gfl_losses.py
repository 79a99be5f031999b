"""DFL against its equation, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from frs.detectors.gfl_losses import distribution_focal_loss

BINS = 9


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def qfl_of(logit: float, quality: float) -> float:
    """For test_gfl.py."""
    score = 1 / (1 + math.exp(-logit))
    return -(abs(quality - score) ** 2) * (quality * math.log(score) + (1 - quality) * math.log(1 - score))


def dfl_of(logits: Any, distance: float) -> float:
    probability, left = softmax(logits), int(distance)
    near, far = left + 1 - distance, distance - left
    return float(-near * math.log(probability[left]) - far * math.log(probability[left + 1]))


def giou_loss_of(a: Any, b: Any) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return float(1 - shared / union + (hull - union) / hull)


def test_distribution_focal_loss_is_equation_6() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(30, BINS, generator=generator) * 3
    distance = torch.rand(30, generator=generator) * (BINS - 1.1)
    distance[:3] = torch.tensor([0.0, 3.0, BINS - 1.1])
    expected = [dfl_of(x.double().numpy(), float(d)) for x, d in zip(logits, distance, strict=True)]
    torch.testing.assert_close(distribution_focal_loss(logits, distance), torch.tensor(expected), atol=1e-5, rtol=1e-4)
