"""The one interface through which validation, parity, profiling and `predict` see a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Detections:
    """What one image holds: the boxes that were found, best first.

    boxes: (D, 4) float32, xyxy in pixels of the letterboxed input; scores: (D,) float32 in 0..1;
    labels: (D,) int32, contiguous.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class ModelInfo:
    """What a predictor has to say about its input and its answers."""

    height: int
    width: int
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


class Predictor(Protocol):
    """A detector that can be asked, whatever runs it."""

    @property
    def info(self) -> ModelInfo: ...

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        """Detect in a batch of letterboxed RGB images, (N, 3, height, width) uint8."""
        ...
