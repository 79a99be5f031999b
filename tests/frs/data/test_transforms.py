"""A box is painted into the picture; after every transform the painted pixels must lie where the box says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from frs.data.transforms import Augment
from frs.edge.image import PADDING

PAINT = 255


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    image = np.full((height, width, 3), 20, dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = PAINT
    return image


def extent(image: npt.NDArray[np.uint8]) -> list[int]:
    ys, xs = np.nonzero(image[..., 0] > 200)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize(
    "augment",
    [
        Augment(flip_horizontal=False),
        Augment(flip_horizontal=True),
        Augment(flip_horizontal=False, flip_vertical=True),
        Augment(flip_horizontal=False, quarter_turns=True),
        Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True),
    ],
)
def test_boxes_follow_flips_and_turns_exactly(augment: Augment) -> None:
    seen = set()
    for seed in range(24):
        image, boxes, kept = augment(
            painted(64, 64, (5, 10, 22, 31)), np.array([[5, 10, 22, 31]], np.float32), np.random.default_rng(seed)
        )
        assert boxes[0].tolist() == extent(image)
        assert kept.tolist() == [0]
        assert image.flags["C_CONTIGUOUS"]
        seen.add(tuple(boxes[0].tolist()))
    expected = 8 if augment.flip_vertical and augment.quarter_turns else 4 if augment.quarter_turns else 2
    assert len(seen) == (1 if augment == Augment(flip_horizontal=False) else expected), "every outcome must occur"


def test_flips_of_an_oblong_image() -> None:
    augment = Augment(flip_horizontal=True, flip_vertical=True)
    for seed in range(8):
        image, boxes, _ = augment(
            painted(48, 80, (5, 10, 22, 31)), np.array([[5, 10, 22, 31]], np.float32), np.random.default_rng(seed)
        )
        assert image.shape == (48, 80, 3)
        assert boxes[0].tolist() == extent(image)


@pytest.mark.parametrize("bounds", [(0.5, 0.9), (1.1, 2.0), (0.5, 2.0)])
def test_boxes_follow_the_zoom_within_a_pixel(bounds: tuple[float, float]) -> None:
    augment = Augment(flip_horizontal=False, scale=bounds)
    sides = []
    for seed in range(40):
        image, boxes, kept = augment(
            painted(96, 96, (30, 34, 70, 60)), np.array([[30, 34, 70, 60]], np.float32), np.random.default_rng(seed)
        )
        assert image.shape == (96, 96, 3)
        if len(kept):
            assert np.abs(boxes[0] - extent(image)).max() <= 1.0
            sides.append(boxes[0, 2] - boxes[0, 0])
    assert len(sides) > 20
    assert max(sides) / min(sides) > 1.3


def test_a_zoom_out_is_padded_and_loses_nothing() -> None:
    image, boxes, kept = Augment(flip_horizontal=False, scale=(0.5, 0.5))(
        painted(64, 64, (0, 0, 64, 64)), np.array([[0, 0, 64, 64]], np.float32), np.random.default_rng(3)
    )
    assert (boxes[0, 2:] - boxes[0, :2]).tolist() == [32, 32]
    assert kept.tolist() == [0]
    assert int((image[..., 0] == PADDING).sum()) == 64 * 64 - 32 * 32


def test_a_sliver_is_dropped_and_the_others_keep_their_number() -> None:
    boxes = np.array([[0, 0, 10, 10], [28, 28, 36, 36]], np.float32)
    augment = Augment(flip_horizontal=False, scale=(4.0, 4.0))
    outcomes = [
        augment(np.zeros((64, 64, 3), np.uint8), boxes, np.random.default_rng(s))[2].tolist() for s in range(60)
    ]
    assert [0] in outcomes
    assert [1] in outcomes
    for left in outcomes:
        assert set(left) <= {0, 1}


def test_colour_changes_pixels_and_nothing_else() -> None:
    image, boxes, _ = Augment(flip_horizontal=False, colour=0.3)(
        painted(32, 32, (5, 5, 9, 9)), np.array([[5, 5, 9, 9]], np.float32), np.random.default_rng(1)
    )
    assert boxes.tolist() == [[5, 5, 9, 9]]
    assert len(np.unique(image)) == 2
    assert (image[0, 0] == image[-1, -1]).all()


def test_an_image_without_boxes() -> None:
    augment = Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True, scale=(0.8, 1.25), colour=0.2)
    _, boxes, kept = augment(np.zeros((32, 32, 3), np.uint8), np.zeros((0, 4), np.float32), np.random.default_rng(0))
    assert boxes.shape == (0, 4)
    assert kept.shape == (0,)
