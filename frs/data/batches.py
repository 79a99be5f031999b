"""Evaluation batches; no torch, so that a device can score."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from frs.data.coco import CocoDataset, CocoImage
from frs.data.resize import Pixels, Resized, ShortestEdge
from frs.edge.image import Letterbox, letterbox, to_nchw
from frs.edge.machine import available_cores

Where = TypeVar("Where")


def evaluation_batches(
    dataset: CocoDataset, height: int, width: int, batch: int
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Letterbox], list[CocoImage]]]:
    """(B, 3, height, width) uint8, how each image lies in it, and the images, in the order of the file; every batch full.

    The last one is filled up with its last image, which is not listed again: a graph with a fixed batch takes it too.
    """
    groups = [list(dataset.images[start : start + batch]) for start in range(0, len(dataset.images), batch)]
    for images, boxed, mappings in _loaded(dataset, groups, lambda image: letterbox(image, height, width)):
        yield to_nchw([*boxed, *[boxed[-1]] * (batch - len(boxed))]), mappings, images


def shortest_edge_batches(
    dataset: CocoDataset, edge: ShortestEdge, batch: int
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Resized], list[CocoImage]]]:
    """(B, 3, H, W) uint8 with H and W by the first of `edge.short_sides`, and the rest as above; nothing is padded.

    A batch holds images that become the same size, at most `batch` of them, so that none of it is another's padding.
    """
    short_side = edge.short_sides[0]
    sizes: dict[tuple[int, int], list[CocoImage]] = {}
    for image in dataset.images:
        sizes.setdefault(edge.size(image.height, image.width, short_side), []).append(image)
    groups = [same[start : start + batch] for same in sizes.values() for start in range(0, len(same), batch)]
    for images, scaled, mappings in _loaded(dataset, groups, lambda image: edge(image, short_side)):
        yield to_nchw(scaled), mappings, images


def _loaded(
    dataset: CocoDataset, groups: Sequence[list[CocoImage]], place: Callable[[Pixels], tuple[Pixels, Where]]
) -> Iterator[tuple[list[CocoImage], list[Pixels], list[Where]]]:
    """Each group with its images decoded and placed, by threads that are a group ahead of what is done with them."""
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        begun: deque[tuple[list[CocoImage], list[Future[tuple[Pixels, Where]]]]] = deque()
        try:
            for number in range(len(groups) + 1):
                if number < len(groups):
                    images = groups[number]
                    begun.append((images, [pool.submit(lambda i: place(dataset.load(i)), image) for image in images]))
                if number:
                    images, futures = begun.popleft()
                    pixels, places = zip(*(future.result() for future in futures), strict=True)
                    yield images, list(pixels), list(places)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
