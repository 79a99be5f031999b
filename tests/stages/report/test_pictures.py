"""Which images are shown, and in which size."""

from __future__ import annotations

import numpy as np
import pytest

from frs.data import CocoImage
from frs.evaluation.images import ImageMatches
from stages.report.pictures import _extremes, resized, spread


def image(key: int, boxes: int = 1) -> CocoImage:
    nothing = np.zeros(boxes)
    corners = np.zeros((boxes, 4), np.float32)
    return CocoImage(key, f"{key}.png", 10, 10, corners, nothing.astype(np.int64), nothing.astype(bool), nothing)


def missed(count: int) -> ImageMatches:
    """An image with so many objects, of which none was found."""
    none = np.zeros(0)
    return ImageMatches(np.zeros((0, 4)), none, none.astype(bool), np.zeros((count, 4)), np.full(count, -1.0))


def test_the_images_are_chosen_by_the_difference_in_errors() -> None:
    errors = {"student": {1: 0, 2: 5, 3: 2, 4: 2, 5: 9}, "control": {1: 4, 2: 1, 3: 3, 4: 2, 5: 8}}
    matches = {model: {key: missed(count) for key, count in of.items()} for model, of in errors.items()}
    images = [image(key) for key in (5, 4, 3, 2, 1)]
    thresholds = {"student": 0.5, "control": 0.5}
    better, worse = _extremes(images, matches, thresholds, 4)
    assert [each.id for each in better] == [1, 3], "four errors fewer, one fewer; the same number is no difference"
    assert [each.id for each in worse] == [2, 5], "four errors more, one more"
    better, worse = _extremes(images, matches, thresholds, 1)
    assert ([each.id for each in better], [each.id for each in worse]) == ([1], [2])
    assert _extremes(images, {"student": matches["student"]}, thresholds, 4) == ([], [])


def test_the_images_of_the_maps_go_from_most_to_fewest_objects() -> None:
    images = [image(key, boxes) for key, boxes in enumerate((3, 0, 9, 1, 5))]
    assert [len(each.boxes) for each in spread(images, 2)] == [9, 1]
    assert [len(each.boxes) for each in spread(images, 20)] == [9, 5, 3, 1]
    assert [len(each.boxes) for each in spread(images, 1)] == [9]
    assert spread(images, 0) == []


@pytest.mark.parametrize(
    ("side", "shown", "factor"), [(100, 700, 7.0), (640, 640, 1.0), (800, 800, 1.0), (4000, 960, 0.24)]
)
def test_photographs_are_shown_in_a_size_that_is_seen(side: int, shown: int, factor: float) -> None:
    pixels = np.zeros((side // 2, side, 3), np.uint8)
    canvas, found = resized(pixels)
    assert canvas.shape == (shown // 2, shown, 3)
    assert found == pytest.approx(factor)
