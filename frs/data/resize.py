"""The papers' input size: the shorter side brought to one length, the longer one kept within another; no torch.

The arithmetic is mmdetection's (`Resize(keep_ratio=True)`, `RandomChoiceResize`, mmdetection 2's multiscale modes): sides
rounded with halves upwards, boxes multiplied by each axis' own ratio. The pixels are not: Pillow's bilinear interpolation
with antialiasing, which is what every image here is scaled by, where mmdetection has OpenCV's without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


class Placed(Protocol):
    """How an image lies in what a detector is given."""

    def to_input(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]: ...

    def to_original(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Resized:
    """An image of original_height x original_width that became height x width; it lies in the top left corner."""

    height: int
    width: int
    original_height: int
    original_width: int

    def to_input(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the image -> in pixels of the input."""
        return (boxes * self._ratios).astype(np.float32)

    def to_original(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the input -> in pixels of the image, brought inside it."""
        limits = np.array([self.original_width, self.original_height] * 2, dtype=np.float32)
        return (boxes / self._ratios).clip(0, limits).astype(np.float32)

    @property
    def _ratios(self) -> npt.NDArray[np.float64]:
        return np.array([self.width / self.original_width, self.height / self.original_height] * 2)


@dataclass(frozen=True)
class ShortestEdge:
    """short_sides: lengths of the shorter side, in pixels; long_side: the most that the longer one may have, which wins;
    multiscale: "value" draws one of `short_sides`, "range" any whole number from the least of them to the greatest."""

    short_sides: tuple[int, ...] = (800,)
    long_side: int = 1333
    multiscale: Literal["value", "range"] = "value"

    @property
    def fixed(self) -> bool:
        """Whether an image always becomes the same."""
        return len(set(self.short_sides)) == 1

    @property
    def tested(self) -> ShortestEdge:
        """What a detector that was trained so is scored at: the greatest of the sides, as in the papers."""
        return ShortestEdge((max(self.short_sides),), self.long_side)

    def draw(self, generator: np.random.Generator) -> int:
        """A length of the shorter side; one number is drawn, always."""
        if self.multiscale == "range":
            return int(generator.integers(min(self.short_sides), max(self.short_sides) + 1))
        return self.short_sides[int(generator.integers(len(self.short_sides)))]

    def size(self, height: int, width: int, short_side: int) -> tuple[int, int]:
        """(height, width) that an image of this size is brought to."""
        scale = min(self.long_side / max(height, width), short_side / min(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def __call__(self, image: Pixels, short_side: int) -> tuple[Pixels, Resized]:
        """(H, W, 3) -> the same scaled, not padded, and how it lies there."""
        original = image.shape[0], image.shape[1]
        height, width = self.size(*original, short_side)
        if (height, width) == original:
            return image.copy(), Resized(height, width, *original)
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(scaled), Resized(height, width, *original)


def padded(height: int, width: int, multiple: int = 32) -> tuple[int, int]:
    """The smallest (height, width), multiples of `multiple`, that hold so many pixels."""
    return height + -height % multiple, width + -width % multiple
