"""Training a detector: the loop, its optimiser and schedule, its checkpoints."""

from frs.training.device import Device, device_kind, resolve_device
from frs.training.loop import Epoch, train
from frs.training.objective import DetectionObjective, Objective, Terms
from frs.training.recipe import Recipe

__all__ = [
    "DetectionObjective",
    "Device",
    "Epoch",
    "Objective",
    "Recipe",
    "Terms",
    "device_kind",
    "resolve_device",
    "train",
]
