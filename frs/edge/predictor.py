"""The one interface through which validation, parity, profiling and `predict` see a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from frs.errors import ExportError

if TYPE_CHECKING:
    from frs.edge.metadata import GraphMetadata

OUTPUTS = ("boxes", "scores", "labels", "num_detections")
"""Of an exported graph: (N, D, 4) float32, (N, D) float32, (N, D) int32 and (N,) int32, padded with zeros."""


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


@dataclass(frozen=True)
class Split:
    """Where the time of one inference went, in nanoseconds.

    copy_in, copy_out: between the host and the device, None where nothing is copied; infer: as the caller's clock sees it;
    gpu: the same by the device's own events, which knows nothing of launching and waiting, None without a GPU.
    """

    copy_in: int | None
    infer: int
    copy_out: int | None
    gpu: int | None


class Session(Predictor, Protocol):
    """An exported file, opened by the library that runs it. It holds memory until it is closed."""

    path: Path
    metadata: GraphMetadata
    batch: int | None
    """That the file takes; None: any that it was made for."""
    provider: str

    @property
    def device_memory_mb(self) -> float | None:
        """10^6 bytes of the GPU's memory that it holds now; None without a GPU."""
        ...

    def run_raw(self, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """The graph alone, for timing: `OUTPUTS`, padded, as arrays of the caller's own. The images are not checked."""
        ...

    def run_split(self, images: npt.NDArray[np.uint8]) -> tuple[list[npt.NDArray[Any]], Split]:
        """The same, timed; the device has nothing to do before and after it."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *_: object) -> None: ...


def check_images(path: Path, images: npt.NDArray[np.uint8], info: ModelInfo, batch: int | None) -> None:
    """Raises ExportError unless they are uint8 of (batch, 3, height, width); batch None: any."""
    expected = (batch or "N", 3, info.height, info.width)
    fits = images.ndim == 4 and images.shape[1:] == expected[1:] and expected[0] in (images.shape[0], "N")
    if images.dtype != np.uint8 or not fits:
        raise ExportError(
            f"{path}: the input `images` takes uint8 of shape {expected}, got {images.dtype} of shape "
            f"{images.shape}; letterbox the images to {info.height} x {info.width} and leave them 0..255"
        )


def detections(path: Path, outputs: Sequence[npt.NDArray[Any]], info: ModelInfo) -> list[Detections]:
    """What a graph answers, `OUTPUTS`, without its padding. Raises ExportError for a class that the file does not have."""
    boxes, scores, labels, counts = outputs
    strange = labels[(labels < 0) | (labels >= len(info.classes))]
    if strange.size:
        raise ExportError(
            f"{path}: it answers with class {strange[0]}, and has {len(info.classes)} from 0 on; its graph and its metadata "
            "do not belong together, so export it again"
        )
    return [
        Detections(boxes[i, :count], scores[i, :count], labels[i, :count]) for i, count in enumerate(counts.tolist())
    ]
