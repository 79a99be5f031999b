from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.yolo_onnx import YoloSession, candidates, centred_letterbox


def session(path: Path, output: npt.NDArray[np.float32], end_to_end: bool) -> YoloSession:
    """Of a file that answers with `output`, whatever it is given."""
    constant = helper.make_node("Constant", [], ["output0"], value=numpy_helper.from_array(output[None]))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 96])
    answer = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, *output.shape])
    model = helper.make_model(helper.make_graph([constant], "constant", [image], [answer]), ir_version=10)
    metadata = {"imgsz": "[64, 96]", "names": "{0: 'cup', 1: 'jug'}", "end2end": str(end_to_end)}
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return YoloSession(path, (3, 9), threads=1)


def test_an_image_lies_in_the_middle_of_its_input() -> None:
    pixels, lies = centred_letterbox(np.full((100, 300, 3), 7, dtype=np.uint8), 256, 192)
    assert pixels.shape == (3, 256, 192)
    assert np.unique(pixels[:, 96:160]).tolist() == [7]
    assert np.unique(pixels[:, :96]).tolist() == np.unique(pixels[:, 160:]).tolist() == [114]
    whole = np.array([[0.0, 0.0, 300.0, 100.0]])
    assert lies.to_input(whole).tolist() == [[0, 96, 192, 160]]
    assert lies.to_original(np.array([[0.0, 96.0, 192.0, 160.0]])) == pytest.approx(whole)
    assert lies.to_original(np.array([[64.0, 112.0, 128.0, 144.0]])) == pytest.approx(np.array([[100, 25, 200, 75]]))


def test_an_odd_row_of_padding_is_below_and_the_rounded_side_counts() -> None:
    """101 rows at 0.64 are 64.64 and become 65: 95 rows above them and 96 below, and 65 / 101 pixels a row."""
    pixels, lies = centred_letterbox(np.zeros((101, 300, 3), dtype=np.uint8), 256, 192)
    assert (pixels[0, :, 0] == 114).nonzero()[0].tolist() == [*range(95), *range(160, 256)]
    assert lies.to_input(np.array([[0.0, 0.0, 300.0, 101.0]])).tolist() == [[0, 95, 192, 160]]


def test_boxes_end_at_the_image_unless_told_otherwise() -> None:
    _, lies = centred_letterbox(np.zeros((100, 300, 3), dtype=np.uint8), 256, 192)
    beyond = np.array([[-32.0, 64.0, 224.0, 192.0]])
    assert lies.to_original(beyond) == pytest.approx(np.array([[0, 0, 300, 100]]))
    assert replace(lies, clipped=False).to_original(beyond) == pytest.approx(np.array([[-50, -50, 350, 150]]))


def test_scaling_has_no_antialiasing() -> None:
    """Four pixels become one: bilinear interpolation takes the two in the middle, antialiasing would take all."""
    row = np.array([0, 100, 120, 200, 40, 10, 30, 80], dtype=np.uint8)
    pixels, _ = centred_letterbox(np.tile(row[None, :, None], (8, 1, 3)), 2, 2)
    assert pixels[0].tolist() == [[110, 20], [110, 20]]


def test_each_class_of_a_box_is_a_candidate() -> None:
    output = np.array([[10, 30], [20, 40], [4, 8], [6, 2], [0.9, 0.0005], [0.2, 0.5]], dtype=np.float32)
    boxes, scores, labels = candidates(output)
    found = sorted(zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True))
    assert found == [
        (0, pytest.approx(0.9), [8, 17, 12, 23]),
        (1, pytest.approx(0.2), [8, 17, 12, 23]),
        (1, pytest.approx(0.5), [26, 39, 34, 41]),
    ]


def test_the_usual_file_needs_suppression_within_a_class(tmp_path: Path) -> None:
    """Of three boxes a pixel apart the best stays; of three boxes two apart (overlaps 18/22 and 16/24) the third as well."""
    boxes = [[50, 51, 52], [20, 20, 20], [20, 20, 20], [20, 20, 20]]
    scores = [[0.9, 0.8, 0.7], [0, 0.6, 0]]
    usual = session(tmp_path / "usual.onnx", np.array([*boxes, *scores], dtype=np.float32), end_to_end=False)
    boxes[0] = [50, 52, 54]
    apart = session(tmp_path / "apart.onnx", np.array([*boxes, *scores], dtype=np.float32), end_to_end=False)
    images = np.zeros((1, 3, 64, 96), dtype=np.uint8)
    assert (usual.info.height, usual.info.width, usual.info.category_ids) == (64, 96, (3, 9))
    (found,) = usual.predict(images)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[40, 10, 60, 30], [41, 10, 61, 30]]
    (found,) = apart.predict(images)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_the_end_to_end_file_needs_none(tmp_path: Path) -> None:
    rows = [[1, 2, 3, 4, 0.9, 1], [1, 2, 3, 4, 0.8, 1], [0, 0, 0, 0, 0.0004, 0]]
    (found,) = session(tmp_path / "x.onnx", np.array(rows, dtype=np.float32), end_to_end=True).predict(
        np.zeros((1, 3, 64, 96), dtype=np.uint8)
    )
    assert found.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.labels.tolist() == [1, 1]
