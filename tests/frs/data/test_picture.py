from __future__ import annotations

import numpy as np
import pytest

from frs.data import Fault, Kind
from frs.data.picture import draw_faults

RED, AMBER, WHITE, GREEN = (225, 30, 60), (255, 170, 0), (255, 255, 255), (0, 128, 0)
PIXELS = np.full((300, 400, 3), GREEN, dtype=np.uint8)
NONE = np.zeros((0, 4))


def fault(kind: Kind, *box: float) -> Fault:
    return Fault(kind, "annotation 1 of image 2 (a.png)", "it is so; mend it", image=2, box=box)  # type: ignore[arg-type]


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The x and y of every pixel of a colour, left and above the list, whose squares begin at x = 10."""
    ys, xs = np.nonzero((picture == colour).all(axis=-1))
    return np.stack([xs, ys])


def test_what_lies_beyond_the_image_is_on_the_canvas() -> None:
    """The box lies 100 pixels right of an image of 400: canvas and picture, 12 + 400 + 212 wide, are brought to 800."""
    picture = np.asarray(draw_faults(PIXELS, NONE, [fault(Kind.OUTSIDE, 500, 100, 100, 50)], "title"))
    scale = 800 / (12 + 400 + 212)
    left, right = where(picture, GREEN)[0].min(), where(picture, GREEN)[0].max()
    assert (left, right) == pytest.approx((12 * scale, 412 * scale), abs=2)
    red = where(picture, RED)
    assert red[0].max() == pytest.approx((12 + 600) * scale, abs=3)
    column = red[1][red[0] == red[0].max()]
    top = where(picture, GREEN)[1].min()
    assert (column.min() - top, column.max() - top) == pytest.approx((100 * scale, 150 * scale), abs=3)


@pytest.mark.parametrize(
    "box", [(1e8, 1e8, 5, 5), (-1e9, 40, 10, 10), (200, -1e6, 1, 2e6), (50, 60, 0, 30), (3, 4, -5, -6)]
)
def test_a_box_far_off_or_without_area_is_seen_all_the_same(box: tuple[float, ...]) -> None:
    image = draw_faults(PIXELS, NONE, [fault(Kind.EMPTY, *box)], "title")
    assert max(image.size) <= 1100
    picture = np.asarray(image)
    assert (picture[60 : image.height - 40] == AMBER).all(axis=-1).sum() > 100


def test_good_boxes_are_white_and_where_they_are() -> None:
    boxes = np.array([[100.0, 100, 200, 200]])
    picture = np.asarray(draw_faults(PIXELS, boxes, [fault(Kind.CLIPPED, 390, 280, 20, 40)], "title"))
    inside = picture[80:400]
    xs = np.nonzero((inside == WHITE).all(axis=-1))[1]
    scale = 800 / (12 + 400 + 22)
    assert (xs.min(), xs.max()) == pytest.approx(((12 + 100) * scale, (12 + 200) * scale), abs=2)


@pytest.mark.parametrize("shape", [(3000, 40, 3), (40, 3000, 3), (1, 1, 3), (5000, 7000, 3)])
def test_every_shape_of_image_gives_a_picture_of_a_size_to_look_at(shape: tuple[int, int, int]) -> None:
    many = [fault(Kind.CLIPPED, -1, -1, 9, 9)] * 40
    image = draw_faults(np.zeros(shape, dtype=np.uint8), NONE, many, "a\nvery\x1b long title " * 50)
    assert 800 <= max(image.size) <= 1400 + 14 * 24 + 60
    assert min(image.size) > 300
