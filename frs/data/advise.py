"""What a data set says about the detector it needs: the input's size, anchors, batch, epochs. Measured, not learnt.

`best_overlap` is the overlap that matching (`frs.detectors.matching`) goes by, without a network and without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from frs.data.coco import CocoDataset, CocoImage

Floats = npt.NDArray[np.float64]

CLEAR_SIDE = 24
"""Pixels of the input that a small object should keep: three cells of the finest level, whose stride is 8."""
LONG_SIDES = (320, 1024)
"""The least and the most that is advised for the input's long side, pixels."""
POSITIVE_IOU = 0.5
COVERED = 0.97
"""The part of the boxes that an anchor should overlap by `POSITIVE_IOU`."""
MOST_BOXES = 4000
"""Anchors are held against this many boxes, evenly spread over the data set."""
MEMORY_GB = 8.0
"""What a training may take: a modest card's."""
STEPS = 3000
"""Of a training that starts from ImageNet weights, where `EPOCHS` allow it."""
EPOCHS = (12, 100)
CANDIDATES_EACH = 12
"""What enters NMS for every object of the densest image."""

_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)  # larger objects belong to the deeper levels
_OCTAVES = (2, 3)  # with one size, or one ratio, RetinaNet loses AP even where that covers the boxes (its table 1c)
_LEVELS = (3, 4, 5)
_MIXED = 0.2  # of the images stand upright and as many lie: the input is square
_FINEST = 8


@dataclass(frozen=True)
class Facts:
    """Of the objects that are no crowd. side: the root of a box's area, pixels of the image; small_class, small_side: the
    class whose 10th percentile of the side is smallest, and that; width, height: the images' medians; densest: the most
    objects in one image."""

    images: int
    empty: int
    objects: int
    classes: int
    width: int
    height: int
    median_side: float
    small_class: str
    small_side: float
    densest: int


@dataclass(frozen=True)
class InputAdvice:
    """height, width: multiples of 32; small_side: `Facts.small_side` on this input, pixels; mixed: both upright and lying
    images are common; limit: what decided, where it was not `CLEAR_SIDE`: "least" or "most" of `LONG_SIDES`, or "images",
    their own size."""

    height: int
    width: int
    small_side: float
    mixed: bool
    limit: str | None


@dataclass(frozen=True)
class AnchorAdvice:
    """levels, scale, octaves, ratios: as in `RetinaNetSpec`; covered: the part of the boxes, 0..1, that an anchor overlaps
    by `POSITIVE_IOU`; boxes: how many were looked at."""

    levels: int
    scale: float
    octaves: int
    ratios: tuple[float, ...]
    covered: float
    boxes: int

    @property
    def smallest(self) -> float:
        """Side of the smallest anchor, pixels of the input."""
        return self.scale * _FINEST

    @property
    def largest(self) -> float:
        """Side of the largest anchor, pixels of the input."""
        return float(self.scale * _FINEST * 2 ** (self.levels - 1 + (self.octaves - 1) / self.octaves))


def measure(data: CocoDataset) -> Facts:
    """The figures that the advice rests on. The data set must have an object that is no crowd."""
    boxes = [_objects(image) for image in data.images]
    labels = np.concatenate([image.labels[~image.crowd] for image in data.images])
    sides = _sides(np.concatenate(boxes))
    label, small = _smallest_class(sides, labels)
    return Facts(
        images=len(data.images),
        empty=sum(len(each) == 0 for each in boxes),
        objects=len(sides),
        classes=len(data.categories),
        width=round(float(np.median([image.width for image in data.images]))),
        height=round(float(np.median([image.height for image in data.images]))),
        median_side=float(np.median(sides)),
        small_class=data.categories[label].name,
        small_side=small,
        densest=max(len(each) for each in boxes),
    )


def advise_input(data: CocoDataset) -> InputAdvice:
    """The smallest input on which the small objects of every class keep `CLEAR_SIDE` pixels, within `LONG_SIDES` and, above
    the least of these, the images' own size. Its shape is the median image's, or square where the images are mixed."""
    shapes = np.array([(image.height, image.width) for image in data.images], dtype=np.float64)
    mixed = min(np.mean(shapes[:, 0] > shapes[:, 1]), np.mean(shapes[:, 1] > shapes[:, 0])) >= _MIXED
    shape = np.full(2, np.median(shapes.max(axis=1))) if mixed else np.median(shapes, axis=0)
    own = _multiple_of_32(shape.max())
    least, most = LONG_SIDES
    end = min(max(own, least), most)
    sides = [_sides(_objects(image)) for image in data.images]
    labels = np.concatenate([image.labels[~image.crowd] for image in data.images])
    for long_side in range(least, end + 1, 32):
        height, width = (max(64, _multiple_of_32(side * long_side / shape.max())) for side in shape)
        scales = np.minimum(height / shapes[:, 0], width / shapes[:, 1])
        _, small = _smallest_class(np.concatenate([s * scale for s, scale in zip(sides, scales, strict=True)]), labels)
        if small >= CLEAR_SIDE:
            return InputAdvice(height, width, small, bool(mixed), "least" if long_side == least else None)
    return InputAdvice(height, width, small, bool(mixed), "most" if own > most else "images")


def advise_anchors(data: CocoDataset, height: int, width: int) -> AnchorAdvice:
    """The simplest anchors that cover `COVERED` of the boxes on this input, or nearly as many as can be.

    Simplest: fewest anchors at a place, then fewest levels, then the greatest mean overlap.
    """
    boxes = np.concatenate([_on_input(image, height, width) for image in data.images])
    boxes = boxes[np.linspace(0, len(boxes) - 1, min(len(boxes), MOST_BOXES)).astype(np.intp)]
    found = []
    for scale, octaves, ratios in product(_SCALES, _OCTAVES, _ratios(boxes)):
        best = np.zeros(len(boxes))
        for level in range(max(_LEVELS)):
            best = np.maximum(best, _level_overlap(boxes, height, width, level, scale, octaves, ratios))
            if level + 1 in _LEVELS:
                covered = float(np.mean(best >= POSITIVE_IOU))
                advice = AnchorAdvice(level + 1, scale, octaves, ratios, covered, len(boxes))
                found.append(((octaves * len(ratios), level + 1, -float(best.mean())), advice))
    wanted = min(COVERED, max(advice.covered for _, advice in found) - 0.01)
    _, simplest = min((each for each in found if each[1].covered >= wanted), key=lambda each: each[0])
    return simplest


def best_overlap(
    boxes: Floats, height: int, width: int, *, levels: int, scale: float, octaves: int, ratios: Sequence[float]
) -> Floats:
    """boxes: (n, 4) xyxy, pixels of the input -> (n,), the greatest IoU of each with any anchor of the input."""
    each = [_level_overlap(boxes, height, width, level, scale, octaves, ratios) for level in range(levels)]
    best: Floats = np.max(each, axis=0)
    return best


def _level_overlap(
    boxes: Floats, height: int, width: int, level: int, scale: float, octaves: int, ratios: Sequence[float]
) -> Floats:
    """Of anchors of one shape none overlaps a box more than the one whose centre is nearest in x and in y."""
    stride = _FINEST * 2**level
    sizes = [scale * stride * 2 ** (k / octaves) for k in range(octaves)]
    anchors = np.array([(size / ratio**0.5, size * ratio**0.5) for ratio in ratios for size in sizes])  # (A, 2)
    last = np.array([-(-width // stride) - 1, -(-height // stride) - 1])
    centres, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    away = np.abs(centres - np.clip(np.rint(centres / stride), 0, last) * stride)[:, None]  # (n, 1, 2)
    sides = extents[:, None]
    shared = np.minimum(np.minimum(sides, anchors), (sides + anchors) / 2 - away).clip(0).prod(axis=2)  # (n, A)
    overlap: Floats = (shared / (sides.prod(axis=2) + anchors.prod(axis=1) - shared)).max(axis=1)
    return overlap


def _ratios(boxes: Floats) -> list[tuple[float, ...]]:
    """Three or five ratios, each twice the one before it: around 1 and, where that is elsewhere, around the median."""
    median = float(np.median((boxes[:, 3] - boxes[:, 1]) / (boxes[:, 2] - boxes[:, 0])))
    middles = [1.0] if 0.7 < median < 1.4 else [1.0, float(f"{median:.1g}")]
    return [tuple(middle * 2.0**k for k in range(-reach, reach + 1)) for middle in middles for reach in (1, 2)]


def advise_batch(images: int, height: int, width: int, classes: int, anchors: int) -> tuple[int, float]:
    """The batch, and about how many GB a training of a RetinaNet-R50 takes with it in float32.

    At most 8, for which the default learning rate is; within `MEMORY_GB`; ten steps an epoch where there are images for
    them.
    """
    # Counted from the tensors that autograd keeps: 2.1 GB a megapixel, and 0.58 MB more for every class and anchor.
    # The 36 million weights, their gradients and AdamW's two moments are 0.6 GB.
    each = (2.1 + 0.00058 * classes * anchors) * height * width / 1e6
    batch = 8
    while batch > 1 and (0.6 + batch * each > MEMORY_GB or images < 10 * batch):
        batch //= 2
    return batch, 0.6 + batch * each


def advise_epochs(steps_per_epoch: int) -> int:
    """As many as make `STEPS`, within `EPOCHS`."""
    return min(max(-(-STEPS // steps_per_epoch), EPOCHS[0]), EPOCHS[1])


def advise_candidates(densest: int) -> tuple[int, int]:
    """(candidates, detections): `CANDIDATES_EACH` in whole hundreds, 300 to 3,840; the detections hold every object of the
    densest image, 100 to 1,000."""
    candidates = min(max(-(-CANDIDATES_EACH * densest // 100) * 100, 300), 3840)
    return candidates, min(max(-(-densest // 100) * 100, 100), 1000)


def _objects(image: CocoImage) -> Floats:
    return image.boxes[~image.crowd].astype(np.float64)


def _on_input(image: CocoImage, height: int, width: int) -> Floats:
    return _objects(image) * min(height / image.height, width / image.width)


def _sides(boxes: Floats) -> Floats:
    sides: Floats = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return sides


def _smallest_class(sides: Floats, labels: npt.NDArray[np.int64]) -> tuple[int, float]:
    """The label whose 10th percentile is smallest, and that."""
    small = {int(label): float(np.percentile(sides[labels == label], 10)) for label in np.unique(labels)}
    label = min(small, key=lambda each: small[each])
    return label, small[label]


def _multiple_of_32(side: float) -> int:
    return int(-(-side // 32) * 32)
