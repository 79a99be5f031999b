from __future__ import annotations

import numpy as np
from PIL import Image

from frs.edge.draw import draw_boxes, draw_heat, side_by_side

GREY = np.full((60, 80, 3), 100, dtype=np.uint8)


def test_boxes_are_outlined_where_they_are() -> None:
    drawn = np.asarray(draw_boxes(GREY, np.array([[10.0, 20, 50, 40]]), (255, 0, 0)))
    assert drawn[20, 30].tolist() == [255, 0, 0]
    assert drawn[30, 10].tolist() == [255, 0, 0]
    assert drawn[30, 30].tolist() == [100, 100, 100]
    assert (GREY == 100).all()


def test_a_dashed_box_leaves_gaps_and_keeps_its_corners() -> None:
    drawn = np.asarray(draw_boxes(GREY, np.array([[10.0, 20, 50, 40]]), (255, 0, 0), dashed=True))
    red = (drawn == [255, 0, 0]).all(axis=-1)
    assert red[20, 10]
    for side in (red[20, 10:51], red[40, 10:51], red[20:41, 10], red[20:41, 50]):
        assert 0.3 < side.mean() < 0.9
    assert not red[25:36, 15:46].any()


def test_a_label_stands_above_its_box_and_a_box_without_area_is_no_error() -> None:
    boxes = np.array([[10.0, 40, 50, 55], [5.0, 30, 5, 30]])
    drawn = np.asarray(draw_boxes(GREY, boxes, (255, 255, 0), ["a tree", "<b>"]))
    assert (drawn[28:40, 10:45] == [255, 255, 0]).all(axis=-1).sum() > 50


def test_a_label_is_whole_where_its_box_begins_at_an_edge() -> None:
    inside = np.asarray(draw_boxes(GREY, np.array([[10.0, 40, 50, 55]]), (255, 255, 0), ["a tree"]))
    for box in ([10.0, 0, 50, 20], [70.0, 40, 79, 55], [-5.0, -9, 20, 20]):
        drawn = np.asarray(draw_boxes(GREY, np.array([box]), (255, 255, 0), ["a tree"]))
        black = (drawn == 0).all(axis=-1).sum()
        assert black == (inside == 0).all(axis=-1).sum(), "as much of the letters is seen"


def test_heat_is_dark_at_zero_and_bright_at_one() -> None:
    heat = np.zeros((60, 80), dtype=np.float32)
    heat[:, 40:] = 1.0
    drawn = np.asarray(draw_heat(GREY, heat, opacity=1.0)).astype(int)
    assert drawn[0, 0].tolist() == [0, 0, 4]
    assert drawn[0, 79].tolist() == [252, 255, 164]


def test_panels_stand_in_a_row() -> None:
    sheet = side_by_side([("one", Image.new("RGB", (40, 20))), ("two", Image.new("RGB", (20, 20)))], height=100)
    assert sheet.size == (200 + 8 + 100, 126)
