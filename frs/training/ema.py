"""A running mean of a detector's weights, which often scores better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from frs.detectors import Detector
from frs.interrupts import signals_deferred


class RunningMean:
    """The exponential moving mean of a detector's parameters and buffers (Polyak & Juditsky, 1992).

    After the step t, counted from 1, mean = d * mean + (1 - d) * weights, with d the smaller one of `decay` and
    (1 + t) / (10 + t): else the initial weights would be most of the mean of a short training. Counts are copied.
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        self.detector = detector
        self.decay = decay
        self.mean = {name: tensor.detach().clone() for name, tensor in detector.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps, at least 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.detector.state_dict().items():
            if tensor.is_floating_point():
                self.mean[name].lerp_(tensor, 1 - decay)
            else:
                self.mean[name].copy_(tensor)

    @torch.no_grad()
    def load(self, mean: dict[str, Tensor]) -> None:
        """What was saved of `mean`."""
        for name, tensor in mean.items():
            self.mean[name].copy_(tensor)

    @torch.no_grad()
    def swap(self) -> None:
        """The mean into the detector, its weights here; a second time, and all is as it was."""
        for name, tensor in self.detector.state_dict().items():
            kept = tensor.clone()
            tensor.copy_(self.mean[name])
            self.mean[name].copy_(kept)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside, the detector has the mean for its weights."""
        swapped = False
        try:
            with signals_deferred():  # one that came in the middle of a swap would leave half of each
                self.swap()
                swapped = True
            yield
        finally:
            if swapped:
                with signals_deferred():
                    self.swap()
