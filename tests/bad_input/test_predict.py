"""Files and images that `predict` cannot use, and the sentence that a user reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from frs.edge.metadata import GraphMetadata
from tests.bad_input.conftest import Place, call

METADATA = GraphMetadata(("rectangle",), (7,), 64, 64, 114, 300, 16, 2, 0.05, 0.5, "fp32", "0.1.0")
Change = Callable[[Any], None]


def model(folder: Path, change: Change | None = None, box: Any = (8, 8, 40, 40), label: int = 0) -> Path:
    """m.onnx with our metadata, and a graph of constants that finds one box in every image."""
    answers = {
        "boxes": np.array([[box, [0] * 4]], dtype=np.float32),
        "scores": np.array([[0.9, 0]], dtype=np.float32),
        "labels": np.array([[label, 0]], dtype=np.int32),
        "num_detections": np.array([1], dtype=np.int32),
    }
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in answers.items()}
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_"], [name]) for name in answers],
        "constants",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in answers.items()],
        [numpy_helper.from_array(value, f"{name}_") for name, value in answers.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, METADATA.to_properties())
    if change is not None:
        change(made)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def properties(**values: str | None) -> Change:
    def change(made: Any) -> None:
        kept = {**{entry.key: entry.value for entry in made.metadata_props}, **values}
        del made.metadata_props[:]
        helper.set_model_props(made, {key: value for key, value in kept.items() if value is not None})

    return change


def external(location: str) -> Change:
    def change(made: Any) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def renamed(made: Any) -> None:
    made.graph.output[0].name = made.graph.node[0].output[0] = "rectangles"


def resized(made: Any) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96


def test_a_file_and_an_image_that_are_right(place: Place) -> None:
    model(place.folder)
    found = json.loads(place.accepts("predict", "m.onnx", "train/images/1.png"))
    assert found[0]["detections"] == [{"category_id": 7, "class": "rectangle", "score": 0.9, "bbox": [8, 8, 32, 32]}]
    assert Path("predictions/1.png").is_file()


def test_a_file_that_is_not_there(place: Place) -> None:
    said = place.refuses("predict", "gone.onnx", "train/images/1.png")
    assert said == "gone.onnx: there is no such file; export it, or correct the path"


@pytest.mark.parametrize(
    "content", [b"", b"no model at all, only words\n", b"\x08\x0a" * 50], ids=["empty", "words", "noise"]
)
def test_a_file_that_is_no_onnx(place: Place, content: bytes) -> None:
    (place.folder / "m.onnx").write_bytes(content)
    said = place.refuses("predict", "m.onnx", "train/images/1.png")
    assert said.startswith("m.onnx: ONNX Runtime cannot open it as an ONNX file (")
    assert said.endswith("); export it again")


OUTPUTS = "tensor(float), scores tensor(float), labels tensor(int32), num_detections tensor(int32)"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            properties(producer='"another"'),
            "frs-pipeline did not export it (no such producer in its metadata); give a file that a run wrote, such as "
            "student.onnx",
        ),
        (properties(format="2"), "metadata format 2, this version reads 1; export the file again"),
        (properties(height=None, rounds=None), "its metadata lacks height, rounds; export the file again"),
        (properties(height='"64"'), "metadata height is '\"64\"', expected int; export the file again"),
        (
            properties(classes='["\\ud800"]'),
            "metadata classes is '[\"\\\\ud800\"]', expected tuple[str, ...]; export the file again",
        ),
        (
            properties(classes="[" * 20_000),
            f"metadata classes is {'[' * 80!r}, expected tuple[str, ...]; export the file again",
        ),
        (
            renamed,
            f"its metadata promise the input ('images', 'tensor(uint8)', [3, 64, 64]) and the outputs boxes {OUTPUTS}, its "
            f"graph has [('images', 'tensor(uint8)', [3, 64, 64])] and rectangles {OUTPUTS}; export it again",
        ),
        (
            resized,
            f"its metadata promise the input ('images', 'tensor(uint8)', [3, 64, 64]) and the outputs boxes {OUTPUTS}, its "
            f"graph has [('images', 'tensor(uint8)', [3, 96, 64])] and boxes {OUTPUTS}; export it again",
        ),
    ],
    ids=["producer", "format", "missing", "malformed", "surrogate", "deep", "outputs", "size"],
)
def test_a_file_that_is_not_what_it_says(place: Place, change: Change, sentence: str) -> None:
    model(place.folder, change)
    assert place.refuses("predict", "m.onnx", "train/images/1.png") == f"m.onnx: {sentence}"


@pytest.mark.parametrize("location", ["../secret.bin", "{root}/secret.bin", "link.bin"])
def test_a_file_that_reads_others_outside_its_folder(place: Place, location: str) -> None:
    (place.folder / "secret.bin").write_bytes(bytes(32))
    (place.folder / "models").mkdir()
    (place.folder / "models/link.bin").symlink_to(place.folder / "secret.bin")
    model(place.folder / "models", external(location.format(root=place.folder)))
    said = place.refuses("predict", "models/m.onnx", "train/images/1.png")
    assert said.startswith("models/m.onnx: ONNX Runtime cannot open it as an ONNX file (")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"label": 3},
            "it answers with class 3, and has 1 from 0 on; its graph and its metadata do not belong together, so "
            "export it again",
        ),
        (
            {"label": -1},
            "it answers with class -1, and has 1 from 0 on; its graph and its metadata do not belong together, so "
            "export it again",
        ),
        (
            {"box": (8, 8, float("nan"), 40)},
            "on train/images/1.png it computes NaN or infinity; export it in fp32, or train it again",
        ),
    ],
    ids=["label", "negative", "NaN"],
)
def test_answers_that_make_no_sense(place: Place, answer: Any, sentence: str) -> None:
    model(place.folder, **answer)
    assert place.refuses("predict", "m.onnx", "train/images/1.png") == f"m.onnx: {sentence}"


def test_a_class_name_of_several_lines_is_drawn(place: Place) -> None:
    model(place.folder, properties(classes=json.dumps(["rect\n\x1b[2Jangle"])))
    place.accepts("predict", "m.onnx", "train/images/1.png")


def test_one_image_that_cannot_be_read_does_not_lose_the_others(place: Place) -> None:
    model(place.folder)
    (place.folder / "bad.png").write_text("no image")
    result = call("predict", "m.onnx", "gone.png", "train/images/1.png", "bad.png", "train/images/2.png")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "frs-pipeline: 2 of 4 images cannot be read",
        "  gone.png: no such image; correct its name or leave it out",
        "  bad.png: cannot be read as an image (no AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP); replace it or leave "
        "it out",
    ]
    answers = json.loads(result.stdout)
    assert ["error" in answer for answer in answers] == [True, False, True, False]
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["1.png", "2.png"]


def test_a_drawing_never_replaces_an_image(place: Place) -> None:
    model(place.folder)
    before = (place.folder / "train/images/1.png").read_bytes()
    said = place.refuses("predict", "m.onnx", "train/images/1.png", "--out", "train/images")
    assert said == "--out train/images: a drawing would replace the image train/images/1.png; choose another folder"
    assert (place.folder / "train/images/1.png").read_bytes() == before


def test_a_drawing_replaces_no_other_image_but_a_drawing(place: Place) -> None:
    model(place.folder)
    (place.folder / "others").mkdir()
    Image.new("RGB", (9, 9)).save(place.folder / "others/1.png")
    said = place.refuses("predict", "m.onnx", "train/images/1.png", "--out", "others")
    assert said == "--out others: a drawing would replace the image others/1.png; choose another folder"
    for _ in range(2):
        place.accepts("predict", "m.onnx", "train/images/1.png", "--out", "mine")


def test_what_was_found_before_a_failure_is_printed(place: Place) -> None:
    model(place.folder)
    (place.folder / "predictions").mkdir()
    (place.folder / "predictions/2.png").mkdir()
    result = call("predict", "m.onnx", "train/images/1.png", "train/images/2.png")
    assert result.exit_code == 1
    assert "predictions/2.png" in result.stderr


def test_drawings_of_images_of_one_name_lie_beside_each_other(place: Place) -> None:
    model(place.folder)
    images = []
    for name in ("x/a.png", "y/a.png", "z/a-2.png"):
        (place.folder / name).parent.mkdir()
        Image.new("RGB", (64, 64)).save(place.folder / name)
        images.append(name)
    found = json.loads(place.accepts("predict", "m.onnx", *images))
    assert [answer["drawn"] for answer in found] == [
        "predictions/a.png",
        "predictions/a-2.png",
        "predictions/a-2-2.png",
    ]
    assert len(list(Path("predictions").iterdir())) == 3


def test_of_a_folder_only_the_files_are_images(place: Place) -> None:
    model(place.folder)
    (place.folder / "mixed/sub.png").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(place.folder / "mixed/a.png")
    found = json.loads(place.accepts("predict", "m.onnx", "mixed"))
    assert [answer["image"] for answer in found] == ["mixed/a.png"]


def test_a_name_that_is_not_utf_8(place: Place) -> None:
    model(place.folder)
    name = os.fsdecode(b"\xff.png")
    Image.new("RGB", (64, 64)).save(place.folder / name)
    found = json.loads(place.accepts("predict", "m.onnx", name))
    assert found[0]["image"] == name
