"""Data sets of given sizes and boxes, without a file behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frs.data import Category, CocoDataset, CocoImage

Box = tuple[float, float, float, float]


def scene(number: int, width: int, height: int, boxes: Sequence[Box], labels: Sequence[int] | None = None) -> CocoImage:
    """boxes: x, y, width, height."""
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=np.float32).reshape(-1, 4)
    return CocoImage(
        id=number,
        file_name=f"{number}.png",
        width=width,
        height=height,
        boxes=corners,
        labels=np.array([0] * len(boxes) if labels is None else labels, dtype=np.int64),
        crowd=np.zeros(len(boxes), dtype=np.bool_),
        area=np.prod(corners[:, 2:] - corners[:, :2], axis=1).astype(np.float64),
    )


def dataset(images: Sequence[CocoImage], classes: Sequence[str] = ("thing",), root: Path = Path()) -> CocoDataset:
    return CocoDataset(root, tuple(images), tuple(Category(i + 1, name) for i, name in enumerate(classes)))
