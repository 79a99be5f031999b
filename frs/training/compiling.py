"""A detector's forward pass by torch.compile, for the steps of its training alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from frs.detectors import Detector
from frs.errors import RuntimeMissing


class Compiled:
    """`features` and `head` of a detector, compiled; losses, matching and whatever else it has run as they are.

    Module and parameters are the detector's own, so that its state dict has the same names. Nothing is compiled before the
    first call. Weights after a training differ from those without by rounding: other kernels add in another order.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.methods = {name: torch.compile(getattr(detector, name)) for name in ("features", "head")}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside, the detector's methods are the compiled ones. The gradient is to be taken inside as well.

        Raises RuntimeMissing when torch cannot compile here, for want of a compiler mostly.
        """
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config

        vars(self.detector).update(self.methods)
        try:
            # A distillation that measures its weights takes several gradients of one forward pass.
            with config.patch(donated_buffer=False):
                yield
        except TorchDynamoException as error:
            raise RuntimeMissing(
                f"train.compile is true, and torch.compile fails here ({str(error).splitlines()[0]}); it needs a C++ compiler "
                "(g++, or what CXX names), and on a GPU triton and a C compiler besides; install them, or set it to false"
            ) from None
        finally:
            for name in self.methods:
                del vars(self.detector)[name]
