"""The focal loss over a whole pyramid's scores, and its gradient, in one pass over memory.

Nearly all places are background, for which the sigmoid focal loss with gamma = 2 (Lin et al. 2017, equation 5) is

    l(x) = w p^2 softplus(x)        l'(x) = w p^2 (2 (1 - p) softplus(x) + p)        p = sigmoid(x)

so it is computed for all of them, piece by piece in the processor's cache, together with the gradient; the few positives
are put in their places afterwards. Written element by element, some thirty tensors of the size of the scores would pass
through memory. GFL's quality focal loss (Li et al. 2020, equation 4, beta = 2) is the same at its negatives, with w = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

_PIECE = 1 << 16
"""Scores at a time on a CPU: with the temporaries they stay in its cache. A GPU takes a whole image."""

Places = tuple[Tensor, Tensor, Tensor]
"""Images, places (counted through all levels) and classes of the positives, (P,) int64 each."""

PositiveLoss = Callable[..., Tensor]
"""(x, which): from scores (p,) and which of the positives they are, (P,) bool, to their losses (p,)."""


def focal_sum(
    levels: Sequence[Tensor], positives: Places, *, counted: Tensor | None = None, alpha: float = 0.25
) -> Tensor:
    """Sigmoid focal loss of each image, (B,) float32, summed over its places and classes.

    levels: logits (B, N_l, K) of any float type; the target is 1 at `positives` and 0 elsewhere. counted: (B, N) bool, the
    places of all levels that enter the loss; None: all.
    """

    def positive(x: Tensor, which: Tensor) -> Tensor:
        return alpha * torch.sigmoid(-x) ** 2 * softplus(-x)

    return _sum(levels, positives, positive, 1 - alpha, counted)


def quality_focal_sum(
    levels: Sequence[Tensor], positives: Places, quality: Tensor, *, counted: Tensor | None = None
) -> Tensor:
    """GFL's quality focal loss (equation 4, beta = 2) of each image, (B,) float32; quality: (P,) in 0..1, the targets."""

    def positive(x: Tensor, which: Tensor) -> Tensor:
        wanted = quality[which]
        entropy = binary_cross_entropy_with_logits(x, wanted, reduction="none")
        return (wanted - torch.sigmoid(x)) ** 2 * entropy

    return _sum(levels, positives, positive, 1.0, counted)


def _sum(
    levels: Sequence[Tensor], positives: Places, positive: PositiveLoss, weight: float, counted: Tensor | None
) -> Tensor:
    """Level by level: put together first, the scores and their gradients would each be copied once more."""
    images, places, classes = positives
    total, start = torch.zeros(len(levels[0]), device=levels[0].device), 0
    for logits in levels:
        end = start + logits.shape[1]
        which = (places >= start) & (places < end)
        own = (images[which], places[which] - start, classes[which])
        part = None if counted is None else counted[:, start:end]
        total = total + _OnePass.apply(logits, own, partial(positive, which=which), weight, part)
        start = end
    return total


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        positives: Places,
        positive: Callable[[Tensor], Tensor],
        weight: float,
        counted: Tensor | None,
    ) -> Tensor:
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        sums = torch.stack(
            [
                _negatives(logits[i], gradient[i], weight, None if counted is None else counted[i])
                for i in range(len(logits))
            ]
        )
        x = logits[positives].float()
        as_negatives = weight * torch.sigmoid(x) ** 2 * softplus(x)
        with torch.enable_grad():
            x.requires_grad_(True)
            losses = positive(x)
            (slopes,) = torch.autograd.grad(losses.sum(), x)
        gradient[positives] = slopes.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return sums.index_add(0, positives[0], losses.detach() - as_negatives)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype)[:, None, None], None, None, None, None


def _negatives(logits: Tensor, gradient: Tensor, weight: float, counted: Tensor | None) -> Tensor:
    """The sum of one image's (N, K) scores as negatives, () float32; its gradient is written into `gradient`."""
    places = len(logits) if logits.is_cuda else max(1, _PIECE // logits.shape[1])
    total = torch.zeros((), device=logits.device)
    for start in range(0, len(logits), places):
        part = slice(start, start + places)
        x = logits[part].float()
        p = torch.sigmoid(x)
        plus = _softplus(x)
        square = p.square().mul_(weight)
        if counted is not None:
            square.mul_(counted[part, None])
        total += torch.dot(square.flatten(), plus.flatten())
        slope = torch.addcmul(p, 1 - p, plus, value=2.0).mul_(square)
        gradient[part] = slope
    return total


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) out of operators that torch vectorises on a CPU: its own softplus takes two hundred times as long.

    1 + e loses the low bits of a small e, and the log with them; they are put back (Kahan's log1p).
    """
    e = x.abs().neg_().exp_()
    one = 1 + e
    lost = (e - (one - 1)).div_(one)
    return one.log_().add_(lost).add_(x.clamp(min=0))
