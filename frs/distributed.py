"""What the ranks of a training have to agree on: numbers that the losses are divided by, gradients, the first one's word.

Every rank must call these functions, in the same order. A process that trains alone gets back what it gave.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


def world_size() -> int:
    """Processes that train together; 1 where there is one alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return distributed.get_rank() if _together() else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if _together() else 0


def local_world_size() -> int:
    """Those of its machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _together() else 1


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


@torch.no_grad()
def averaged(value: Tensor) -> Tensor:
    """The mean over the ranks, the same bits on each; any shape, without gradient."""
    ranks = world_size()
    if ranks == 1:
        return value.detach()
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / ranks


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' gradients, and of the statistics that BatchNorm keeps of its images.

    What has a gradient on one rank gets one on all; what has none on any keeps none. One exchange, behind the backward pass:
    DistributedDataParallel would hide its time behind that pass, but has to be told what is unused in a step (the adapters,
    while `auto` measures), renames what a checkpoint holds, and takes the first rank's statistics for all.
    """
    ranks = world_size()
    if ranks == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    present = torch.tensor([each.grad is not None for each in parameters], dtype=torch.float32)
    changed = [*gradients, *_statistics(module), present.to(gradients[0].device)]
    flat = torch.cat([tensor.flatten() for tensor in changed])
    distributed.all_reduce(flat)
    flat /= ranks
    for tensor, mean in zip(changed, torch.split(flat, [tensor.numel() for tensor in changed]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
    for parameter, gradient, share in zip(parameters, gradients, changed[-1].tolist(), strict=True):
        if share > 0:
            parameter.grad = gradient


def copy_of_first(module: nn.Module) -> None:
    """Give every rank the first one's parameters and buffers."""
    if world_size() > 1:
        for value in module.state_dict().values():
            whole = value.contiguous()
            distributed.broadcast(whole, 0)
            value.copy_(whole)


def of_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank; the others do not call it."""
    if world_size() == 1:
        return make()
    made: list[T | None] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(made, 0)
    return made[0]  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    values: list[T | None] = [value]
    if world_size() > 1:
        values = [None] * world_size()
        distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances that this step has changed. (A mean of equal numbers may round, so no others.)"""
    learning = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.training]
    kept = [statistic for each in learning for statistic in (each.running_mean, each.running_var)]
    return [statistic for statistic in kept if statistic is not None]
