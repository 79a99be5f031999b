"""DFL and GIoU against their equations, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torchvision.ops import generalized_box_iou_loss

from frs.detectors.gfl_losses import distribution_focal_loss, giou_loss
from tests.frs.detectors.test_boxes_and_anchors import random_boxes

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


def test_giou_loss_is_torchvisions() -> None:
    boxes, wanted = random_boxes(200, 1, 60).requires_grad_(True), random_boxes(200, 2, 60)
    ours, theirs = giou_loss(boxes, wanted), generalized_box_iou_loss(boxes, wanted)
    torch.testing.assert_close(ours, theirs)
    by_hand = [giou_loss_of(a, b) for a, b in zip(boxes.tolist(), wanted.tolist(), strict=True)]
    torch.testing.assert_close(ours, torch.tensor(by_hand), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(ours.sum(), boxes)
    (expected,) = torch.autograd.grad(theirs.sum(), boxes)
    torch.testing.assert_close(gradient, expected)


def test_a_box_that_has_no_size_yet_has_a_loss_and_a_gradient() -> None:
    point = torch.tensor([[5.0, 5, 5, 5]], requires_grad=True)
    loss = giou_loss(point, torch.tensor([[1.0, 1, 4, 4]])).sum()
    (gradient,) = torch.autograd.grad(loss, point)
    assert float(loss.detach()) > 1
    assert bool(gradient.isfinite().all())
