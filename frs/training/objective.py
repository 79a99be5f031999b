"""What a training minimises: a module that holds everything trainable and answers a batch with its loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from frs.detectors import Detector, Targets


@dataclass(frozen=True)
class Terms:
    """The loss of one batch.

    total: () what is differentiated; parts: the named terms that it is made of, unweighted; figures: other numbers
    worth a line (weights in force).
    """

    total: Tensor
    parts: dict[str, Tensor]
    figures: dict[str, float] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """Base: `detector` is what the training is for; whatever else is registered is trained beside it."""

    detector: Detector

    @abstractmethod
    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        """images: (B, 3, H, W) uint8, padded beyond `targets.sizes`; step: optimiser steps taken so far."""


class DetectionObjective(Objective):
    """The detector's own loss."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        features = self.detector.features(self.detector.normalize(images, targets.sizes))
        parts = self.detector.loss(features, self.detector.head(features), targets)
        return Terms(torch.stack(list(parts.values())).sum(), parts)
