"""Random samples of positives and negatives, so that the many negatives do not drown the few positives."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sample(positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Of each image `count` boxes, at most that fraction of them positive; negatives fill the rest (Ren et al. 2015, 3.1.3).

    positive, negative: (B, N) bool, exclusive -> the chosen of both, (B, N) bool. By torch's generator.
    """
    most = int(count * positive_fraction)
    positive = _choose(positive, torch.full_like(positive[:, 0], most, dtype=torch.int64), most)
    return positive, _choose(negative, count - positive.sum(dim=1), count)


def _choose(among: Tensor, quota: Tensor, most: int) -> Tensor:
    """At random `quota` (B,), none more than `most`, of those that are `among` (B, N)."""
    key = torch.rand(among.shape, device=among.device) + among.float()  # those that are not among have less than 1
    best, index = key.topk(min(most, key.shape[1]))
    taken = (best >= 1.0) & (torch.arange(best.shape[1], device=best.device) < quota[:, None])
    return torch.zeros_like(among).scatter(1, index, taken)
