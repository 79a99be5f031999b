"""Training a detector: the loop, its optimiser and schedule, its checkpoints."""

from frs.training.device import Device, device_kind, resolve_device
from frs.training.loop import Epoch, Recipe, train
from frs.training.objective import DetectionObjective, Objective, Terms

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
