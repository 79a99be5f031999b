"""The optimiser of a recipe, and its learning rate at every step.

sgd and the schedule "step" are mmdetection's, with which the detectors of the FRS paper were trained.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from frs.training.objective import Objective
from frs.training.recipe import Recipe

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    """For all parameters that are to be trained. A group's "factor" is its part of the learning rate.

    adamw: decoupled decay of weights; biases and normalisation parameters are not decayed. sgd: decay within the gradient,
    of all parameters as mmdetection has it, but for the biases outside of normalisation layers where `bias_decay` is False.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    backbone = {id(parameter) for parameter in objective.detector.backbone.parameters()}
    biases = _biases(objective)
    for parameter in objective.parameters():
        if not parameter.requires_grad:
            continue
        factor = recipe.backbone_lr if id(parameter) in backbone else 1.0
        if id(parameter) in biases:
            factor *= recipe.bias_lr
        sgd_decays = recipe.bias_decay or id(parameter) not in biases
        decayed = sgd_decays if recipe.optimizer == "sgd" else parameter.ndim > 1
        groups.setdefault((factor, decayed), []).append(parameter)
    settings = [
        {"params": parameters, "factor": factor, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (factor, decayed), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(settings, lr=recipe.lr)


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Of a group with factor 1 at `step`, counted from 0, with `per_epoch` steps in an epoch."""
    if recipe.schedule == "one_cycle":
        return recipe.lr * one_cycle(step, recipe.epochs * per_epoch, recipe.warmup)
    return recipe.lr * warm_up(step, recipe) * 0.1 ** sum(step >= epoch * per_epoch for epoch in recipe.milestones)


def one_cycle(step: int, total: int, warmup: float) -> float:
    """The learning rate at `step` of `total`, as a part of its peak: linear from 1/25, then a cosine to 0."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return 0.04 + 0.96 * step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def warm_up(step: int, recipe: Recipe) -> float:
    """The part of the learning rate that mmcv's warm-up lets through: from `warmup_ratio` to 1, or that and then 1."""
    if step >= recipe.warmup_steps:
        return 1.0
    if recipe.warmup_shape == "constant":
        return recipe.warmup_ratio
    return recipe.warmup_ratio + (1 - recipe.warmup_ratio) * step / recipe.warmup_steps


def _biases(objective: Objective) -> set[int]:
    return {
        id(parameter)
        for module in objective.modules()
        if not isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias"
    }
