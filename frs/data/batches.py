"""Evaluation batches, in the order of the file; no torch, so that a device can score."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from frs.data.coco import CocoDataset, CocoImage
from frs.edge.image import Letterbox, letterbox, to_nchw


def evaluation_batches(
    dataset: CocoDataset, height: int, width: int, batch: int
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Letterbox], list[CocoImage]]]:
    """(B, 3, height, width) uint8, how each image lies in it, and the images; every batch full.

    The last one is filled up with its last image, which is not listed again: a graph with a fixed batch takes it too.
    """
    for start in range(0, len(dataset.images), batch):
        images = list(dataset.images[start : start + batch])
        boxed, mappings = zip(*(letterbox(dataset.load(image), height, width) for image in images), strict=True)
        filled = [*boxed, *[boxed[-1]] * (batch - len(boxed))]
        yield to_nchw(filled), list(mappings), images
