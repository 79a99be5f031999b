"""What a training does to an image and its boxes; the random numbers come from a generator that is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from frs.edge.image import PADDING

Boxes = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

MIN_VISIBLE = 0.25
"""A box of which a zoom leaves less than this inside the image is dropped."""


@dataclass(frozen=True)
class Augment:
    """Chances of one half for each flip and equal chances for quarter turns (square images only); scale: a zoom drawn
    between its bounds, by area of what is seen uniformly placed; colour: strength of brightness and contrast, 0..1."""

    flip_horizontal: bool = True
    flip_vertical: bool = False
    quarter_turns: bool = False
    scale: tuple[float, float] | None = None
    colour: float = 0.0

    def __call__(
        self, image: Pixels, boxes: Boxes, generator: np.random.Generator
    ) -> tuple[Pixels, Boxes, npt.NDArray[np.intp]]:
        """image (H, W, 3), boxes (n, 4) xyxy -> the same, changed, and which of the boxes are left."""
        # Every number is drawn whether it is used or not: switching one option leaves the others' draws as they were.
        draws = generator.random(7)
        if self.flip_horizontal and draws[0] < 0.5:
            image, boxes = image[:, ::-1], _flip(boxes, image.shape[1], 0)
        if self.flip_vertical and draws[1] < 0.5:
            image, boxes = image[::-1], _flip(boxes, image.shape[0], 1)
        if self.quarter_turns:
            for _ in range(int(draws[2] * 4)):
                image, boxes = np.rot90(image), _turn(boxes, image.shape[1])
        kept = np.arange(len(boxes))
        if self.scale is not None:
            image, boxes, kept = _zoom(np.ascontiguousarray(image), boxes, self.scale, draws[3:6])
        if self.colour:
            image = _recolour(image, self.colour, generator.uniform(-1, 1, 2))
        return np.ascontiguousarray(image), boxes, kept


def _flip(boxes: Boxes, side: int, axis: int) -> Boxes:
    flipped = boxes.copy()
    flipped[:, axis], flipped[:, axis + 2] = side - boxes[:, axis + 2], side - boxes[:, axis]
    return flipped


def _turn(boxes: Boxes, width: int) -> Boxes:
    """As np.rot90, counterclockwise: (x, y) -> (y, width - x)."""
    return np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)


def _zoom(
    image: Pixels, boxes: Boxes, bounds: tuple[float, float], draws: npt.NDArray[np.float64]
) -> tuple[Pixels, Boxes, npt.NDArray[np.intp]]:
    """Scale the image and put it back into its size at a random place: cropped, or padded with 114."""
    height, width = image.shape[:2]
    factor = float(np.exp(np.log(bounds[0]) + draws[0] * np.log(bounds[1] / bounds[0])))
    new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
    scaled = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    x, y = round(draws[1] * (width - new_width)), round(draws[2] * (height - new_height))  # negative: cropped
    canvas = np.full_like(image, PADDING)
    canvas[max(y, 0) : y + new_height, max(x, 0) : x + new_width] = scaled[
        max(-y, 0) : height - y, max(-x, 0) : width - x
    ]
    ratio = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
    moved = boxes * ratio + np.array([x, y, x, y], dtype=np.float32)
    clipped = moved.clip(0, np.array([width, height] * 2, dtype=np.float32)).astype(np.float32)
    kept = np.flatnonzero(_area(clipped) > MIN_VISIBLE * _area(moved))
    return canvas, clipped[kept], kept


def _area(boxes: Boxes) -> Boxes:
    area: Boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def _recolour(image: Pixels, strength: float, draws: npt.NDArray[np.float64]) -> Pixels:
    brightness, contrast = 1 + strength * draws[0], 1 + strength * draws[1]
    table = ((np.arange(256) * brightness - 128) * contrast + 128).clip(0, 255).round().astype(np.uint8)
    recoloured: Pixels = table[image]
    return recoloured
