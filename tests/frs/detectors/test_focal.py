from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from frs.detectors.focal import focal_sum, quality_focal_sum

IMAGES, PLACES, CLASSES = 3, 2000, 80  # more than one piece an image


def scene(dtype: torch.dtype = torch.float32) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Scores from sure to absurd, forty positives, some places that do not count, a quality for each positive."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, PLACES, CLASSES, generator=generator) * 4 - 3
    logits.view(-1)[:6] = torch.tensor([-90.0, -30, 0, 15, 30, 90])
    image = torch.randint(0, IMAGES, (40,), generator=generator)
    place = torch.randperm(PLACES, generator=generator)[:40]
    label = torch.randint(0, CLASSES, (40,), generator=generator)
    counted = torch.rand(IMAGES, PLACES, generator=generator) > 0.1
    counted[image, place] = True
    quality = torch.rand(40, generator=generator)
    return logits.to(dtype).requires_grad_(True), (image, place, label), counted, quality


def in_levels(logits: Tensor) -> list[Tensor]:
    return [logits[:, :1500], logits[:, 1500:1990], logits[:, 1990:]]


def expected(logits: Tensor, positives: tuple[Tensor, Tensor, Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    """torchvision's, in float64, and its gradient for sums weighted 1, 2, 3."""
    x = logits.detach().double().requires_grad_(True)
    targets = torch.zeros_like(x)
    targets[positives] = 1
    sums = (sigmoid_focal_loss(x, targets, alpha=0.25, gamma=2) * counted[..., None]).sum((1, 2))
    (sums * torch.arange(1, IMAGES + 1)).sum().backward()
    assert x.grad is not None
    return sums.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchvisions(dtype: torch.dtype) -> None:
    logits, positives, counted, _ = scene(dtype)
    sums, gradient = expected(logits, positives, counted)
    ours = focal_sum(in_levels(logits), positives, counted=counted)
    (ours * torch.arange(1, IMAGES + 1)).sum().backward()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), sums, rtol=2e-5, atol=0)
    assert logits.grad is not None
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (1e-2, 1e-4)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=rtol, atol=atol)


def test_without_positives_everything_is_background() -> None:
    logits, _, counted, _ = scene()
    none = torch.zeros(0, dtype=torch.int64)
    sums, _ = expected(logits, (none, none, none), torch.ones_like(counted))
    torch.testing.assert_close(focal_sum(in_levels(logits), (none, none, none)).double(), sums, rtol=2e-5, atol=0)


def test_the_quality_focal_loss_is_equation_4() -> None:
    logits, positives, counted, quality = scene()
    ours = quality_focal_sum(in_levels(logits), positives, quality, counted=counted)
    ours.sum().backward()

    x = logits.detach().double().numpy()
    y = np.zeros_like(x)
    y[tuple(index.numpy() for index in positives)] = quality.numpy()
    sigma = 1 / (1 + np.exp(-x))
    log_sigma, log_other = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    entropy = -((1 - y) * log_other + y * log_sigma)
    losses = np.abs(y - sigma) ** 2 * entropy * counted.numpy()[..., None]
    np.testing.assert_allclose(ours.detach().numpy(), losses.sum((1, 2)), rtol=2e-5)
    # d/dx of |y - s|^2 H: 2 (s - y) s (1 - s) H + (y - s)^2 (s - y)
    slope = (2 * (sigma - y) * sigma * (1 - sigma) * entropy + (y - sigma) ** 2 * (sigma - y)) * counted.numpy()[
        ..., None
    ]
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), slope, rtol=2e-4, atol=1e-6)


def test_absurd_scores_have_finite_gradients() -> None:
    logits = torch.tensor([[[-200.0, 200.0]]], requires_grad=True)
    at = torch.zeros(1, dtype=torch.int64)
    quality_focal_sum([logits], (at, at, at), torch.tensor([0.7])).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.343, 1.0]]]))  # -0.7 * 0.7^2, and 1^2 * 1
