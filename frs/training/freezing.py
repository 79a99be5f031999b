"""Which parts of the backbone a training leaves as they are, in parameters and in batch statistics."""

from __future__ import annotations

from torch import nn

from frs.errors import TrainingError
from frs.training.objective import Objective
from frs.training.recipe import Recipe

_STAGES = ("layer1", "layer2", "layer3", "layer4")


def freeze(objective: Objective, recipe: Recipe) -> None:
    """Take the gradient from what the recipe does not train. Raises TrainingError as `first_stages` does."""
    backbone = objective.detector.backbone
    frozen: list[nn.Module] = first_stages(backbone, recipe.frozen_stages)
    if recipe.backbone_lr == 0.0:
        frozen.append(backbone)
    if recipe.frozen_norm == "all":
        frozen.extend(_norms(backbone))
    for module in frozen:
        module.requires_grad_(False)


def wake(objective: Objective, recipe: Recipe) -> None:
    """Training mode; what is frozen keeps its batch statistics too."""
    objective.train()
    backbone = objective.detector.backbone
    asleep: list[nn.Module] = first_stages(backbone, recipe.frozen_stages)
    if recipe.backbone_lr == 0.0:
        asleep.append(backbone)
    if recipe.frozen_norm != "none":
        asleep.extend(_norms(backbone))
    for module in asleep:
        module.eval()


def first_stages(backbone: nn.Module, count: int) -> list[nn.Module]:
    """The stem and the first `count` stages; nothing for 0.

    Raises TrainingError for a backbone without layer1 .. layer4, which timm's ResNets and their kin have.
    """
    if count == 0:
        return []
    body = getattr(backbone, "body", backbone)
    parts = dict(body.named_children())
    if not set(_STAGES) <= set(parts):
        name = getattr(backbone, "name", type(body).__name__)
        raise TrainingError(
            f"train.frozen_stages is {count}, but the backbone {name} has no stages {_STAGES[0]} .. {_STAGES[-1]}, as ResNet, "
            "ResNeXt and SE-ResNet have; set it to 0, or backbone_lr to 0 to freeze all of the backbone"
        )
    names = list(parts)
    return [parts[name] for name in names[: names.index(_STAGES[0])]] + [parts[name] for name in _STAGES[:count]]


def _norms(backbone: nn.Module) -> list[nn.Module]:
    return [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
