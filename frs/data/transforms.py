"""What a training does to an image and its boxes; the random numbers come from a generator that is given.

Flips, turns and zooms are torchvision's (transforms.v2.functional), several times as fast as numpy and Pillow; a scaled
pixel is within 1 of 255 of Pillow's. Its brightness and contrast are slower than the one table here
(`python benchmarks/augment.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes

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
        # A view: the bytes stay in rows of RGB, which torch calls channels-last and keeps through flips and scalings.
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        shapes = BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=image.shape[:2])
        if self.flip_horizontal and draws[0] < 0.5:
            pixels, shapes = functional.horizontal_flip(pixels), functional.horizontal_flip(shapes)
        if self.flip_vertical and draws[1] < 0.5:
            pixels, shapes = functional.vertical_flip(pixels), functional.vertical_flip(shapes)
        if self.quarter_turns:
            for _ in range(int(draws[2] * 4)):
                pixels, shapes = _turn(pixels, shapes)
        kept = np.arange(len(boxes))
        if self.scale is not None:
            pixels, shapes, kept = _zoom(pixels, shapes, self.scale, draws[3:6])
        changed: Pixels = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        if self.colour:
            changed = _recolour(changed, self.colour, generator.uniform(-1, 1, 2))
        return changed, shapes.as_subclass(Tensor).numpy(), kept


def _turn(pixels: Tensor, boxes: BoundingBoxes) -> tuple[Tensor, BoundingBoxes]:
    """Counterclockwise: mirrored at the diagonal, then top to bottom. `functional.rotate` would round the boxes."""
    mirrored = boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]]
    boxes = BoundingBoxes(mirrored, format="XYXY", canvas_size=(pixels.shape[2], pixels.shape[1]))
    return functional.vertical_flip(pixels.transpose(-1, -2)), functional.vertical_flip(boxes)


def _zoom(
    pixels: Tensor, boxes: BoundingBoxes, bounds: tuple[float, float], draws: npt.NDArray[np.float64]
) -> tuple[Tensor, BoundingBoxes, npt.NDArray[np.intp]]:
    """Scale the image and put it back into its size at a random place: cropped, or padded with 114."""
    height, width = pixels.shape[1:]
    factor = float(np.exp(np.log(bounds[0]) + draws[0] * np.log(bounds[1] / bounds[0])))
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    pixels, boxes = functional.resize(pixels, size, antialias=True), functional.resize(boxes, size)
    x, y = round(draws[1] * (width - size[1])), round(draws[2] * (height - size[0]))  # negative: cropped
    margins = [x, y, width - size[1] - x, height - size[0] - y]
    areas = _areas(boxes)
    pixels = functional.pad(pixels, margins, fill=PADDING)
    boxes = functional.pad(boxes, margins)  # brought inside
    visible = _areas(boxes) > MIN_VISIBLE * areas
    return pixels, BoundingBoxes(boxes[visible], format="XYXY", canvas_size=(height, width)), np.flatnonzero(visible)


def _areas(boxes: BoundingBoxes) -> npt.NDArray[np.float32]:
    x0, y0, x1, y1 = boxes.as_subclass(Tensor).numpy().T
    areas: npt.NDArray[np.float32] = (x1 - x0) * (y1 - y0)
    return areas


def _recolour(image: Pixels, strength: float, draws: npt.NDArray[np.float64]) -> Pixels:
    brightness, contrast = 1 + strength * draws[0], 1 + strength * draws[1]
    table = ((np.arange(256) * brightness - 128) * contrast + 128).clip(0, 255).round().astype(np.uint8)
    recoloured: Pixels = table[image]
    return recoloured
