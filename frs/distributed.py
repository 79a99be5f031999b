"""What the ranks of a training have to agree on: numbers that the losses are divided by."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Processes that train together; 1 where there is one alone."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@torch.no_grad()
def normaliser(count: Tensor, *, least: float = 1.0) -> Tensor:
    """What a sum over this rank's images is divided by: count summed over all ranks, at least `least`, per rank.

    count: any shape, of this rank -> the same shape, float32. Gradients are averaged over the ranks, so that the result is
    the gradient of one process with all the images. Every rank must call it, in the same order.
    """
    total = count.detach().float()
    ranks = world_size()
    if ranks > 1:
        total = total.clone()
        distributed.all_reduce(total)
    return total.clamp(min=least) / ranks
