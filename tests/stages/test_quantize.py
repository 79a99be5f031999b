"""The stage on a small detector that finds what is annotated: pixels, division of the images, limit, and what is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from PIL import Image

from frs.data import Category, CocoDataset, CocoImage, read_coco, write_coco
from frs.edge.image import PADDING
from frs.edge.ort import OnnxRuntimeSession
from frs.errors import ExportError
from frs.export.holdout import divide
from frs.export.layers import find_layers
from frs.export.onnx import export_onnx
from pipeline.loading import load_config
from pipeline.stage import Context
from stages.common import read_json
from stages.quantize import stage
from tests.frs.export.lab import CATEGORY_IDS, CLASSES, busy_detector, pictures

HEIGHT, WIDTH = 96, 128
COUNT = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are lower than the input, so that it pads them; a detector; as objects what it finds in them itself."""
    folder = tmp_path_factory.mktemp("place")
    pixels = (pictures(COUNT, HEIGHT - 32, WIDTH).transpose(0, 2, 3, 1) // 2 + 60).astype(np.uint8)
    padded = np.full((COUNT, HEIGHT, WIDTH, 3), PADDING, np.uint8)
    padded[:, : HEIGHT - 32] = pixels
    images = np.ascontiguousarray(padded.transpose(0, 3, 1, 2))
    detector = busy_detector(images, boxes=20, head_norm="group")
    export_onnx(detector, folder / "student.onnx", height=HEIGHT, width=WIDTH, batch=4, candidates=100, rounds=4)
    session = OnnxRuntimeSession(folder / "student.onnx", threads=1)
    found = [each for start in range(0, COUNT, 4) for each in session.predict(images[start : start + 4])]
    entries = []
    for number, detections in enumerate(found):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
        boxes = detections.boxes[:15].clip(0, [WIDTH, HEIGHT - 32] * 2)
        there = ((boxes[:, 2:] - boxes[:, :2]) > 4).all(axis=1)
        boxes, labels = boxes[there], detections.labels[:15][there].astype(np.int64)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
        crowd = np.zeros(len(boxes), np.bool_)
        entries.append(CocoImage(number + 1, f"{number}.png", WIDTH, HEIGHT - 32, boxes, labels, crowd, area))
    categories = tuple(Category(key, name) for key, name in zip(CATEGORY_IDS, CLASSES, strict=True))
    write_coco(CocoDataset(folder, tuple(entries), categories), folder / "train.json")
    return folder


def run(place: Path, folder: Path, *overrides: str, annotations: str = "train.json") -> tuple[Path, list[str]]:
    """The folder with what the stage wrote, and what it said."""
    detector = {"detector": {"backbone": "resnet18"}}
    split = {"annotations": str(place / annotations), "images": str(place)}
    fields = {
        "version": 1,
        "name": "a",
        "data": {"source": "coco", "train": split, "val": split},
        "input": {"height": HEIGHT, "width": WIDTH},
        "teacher": detector,
        "student": detector,
        "export": {"batch": 4, "precisions": ["fp32"]},
        "quantize": {"precisions": ["int8"], "images": 10, "holdout": 8},
        "runtime": {"threads": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(fields))
    config = load_config(folder / "config.yaml", overrides)
    made = stage(config)
    said: list[str] = []
    context = Context(
        config=config,
        inputs={
            "train": place / annotations,
            "val": place / annotations,
            "images": place,
            "image_hashes": place / "none",
            "student_fp32": place / "student.onnx",
        },
        outputs={label: folder / name for label, name in made.outputs.items()},
        scratch=folder,
        progress=cast(Any, SimpleNamespace(update=lambda *_, **__: None, log=said.append)),
        hash_file=str,
        run_dir=folder,
        command="",
        commit=None,
    )
    made.run(context)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []  # what was only scored is gone
    return folder, said


def test_with_room_nothing_is_kept_and_all_is_reported(place: Path, tmp_path: Path) -> None:
    folder, said = run(place, tmp_path, "gates.int8_max_drop=50", "quantize.precisions=[int8, int8-cpu]")
    quantization, sensitivity = read_json(folder / "quantization.json"), read_json(folder / "sensitivity.json")
    assert said[0] == "10 training images to calibrate on, 8 others to measure the loss on"
    layers = find_layers(onnx.load(place / "student.onnx"))
    for label in ("student_int8", "student_int8-cpu"):
        made, found = quantization[label], sensitivity[label]
        assert (made["calibration"], made["holdout"], made["limit"], made["layers"]) == (10, 8, 50, len(layers))
        assert made["kept"] == made["asked_for"] == []
        assert made["steps"] == [{"kept": 0, "drop": made["drop"]}]
        assert made["source_AP"] > 60  # its own detections, and a few more
        assert 0 < made["drop"] < 50
        assert made["missing"] == {}
        assert (found["measured_on"], found["by"]) == (label, "AP")
        assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in layers]
        assert all(10 < layer["sqnr_db"] < 80 for layer in found["layers"])
        assert sum(group["layers"] for group in found["groups"]) == len(layers)
        assert max(abs(group["drop"]) for group in found["groups"]) > 0
        assert {group["kept"] for group in found["groups"]} == {0}
    assert sensitivity["student_int8"]["groups"] != sensitivity["student_int8-cpu"]["groups"]
    assert said[-1].startswith("student.int8-cpu.onnx: ")
    assert said[-1].endswith("every layer quantised")


def test_a_tight_limit_keeps_layers_until_it_is_met(place: Path, tmp_path: Path) -> None:
    for name in ("without", "within"):
        (tmp_path / name).mkdir()
    without, _ = run(place, tmp_path / "without", "gates.int8_max_drop=null")
    loss = read_json(without / "quantization.json")["student_int8"]
    assert (loss["kept"], loss["limit"]) == ([], None)
    limit = loss["drop"] / 3
    folder, said = run(place, tmp_path / "within", f"gates.int8_max_drop={limit}")
    made = read_json(folder / "quantization.json")["student_int8"]
    assert 0 < len(made["kept"]) < made["layers"]
    assert made["drop"] <= limit
    assert made["steps"][0] == {"kept": 0, "drop": loss["drop"]}
    assert {"kept": len(made["kept"]), "drop": made["drop"]} in made["steps"]
    assert f"{len(made['kept'])} of {made['layers']} layers kept in higher precision" in said[-1]
    model, source = onnx.load(folder / "student.int8.onnx"), onnx.load(place / "student.onnx")
    assert {layer.name for layer in find_layers(model)} == set(made["kept"])  # the others' weights are no longer float
    found = read_json(folder / "sensitivity.json")["student_int8"]
    assert [layer["name"] for layer in found["layers"] if layer["kept"]] == made["kept"]
    # The first to go are of the group that costs most.
    worst = max(found["groups"], key=lambda group: group["drop"])
    assert worst["kept"] > 0
    assert len(find_layers(source)) == made["layers"]


def test_layers_that_are_asked_for_and_noise_alone(place: Path, tmp_path: Path) -> None:
    asked = ("quantize.keep_first=true", "quantize.keep_last=true", "quantize.keep=['fpn.lateral.*']")
    folder, _ = run(place, tmp_path, *asked, "quantize.sensitivity=sqnr", "gates.int8_max_drop=50")
    made, found = (read_json(folder / f"{name}.json")["student_int8"] for name in ("quantization", "sensitivity"))
    assert set(made["kept"]) == {
        "backbone.body.conv1", "class_output", "box_output", "fpn.lateral.0", "fpn.lateral.1", "fpn.lateral.2"
    }  # fmt: skip
    assert made["asked_for"] == sorted(made["kept"])
    assert {layer.name for layer in find_layers(onnx.load(folder / "student.int8.onnx"))} == set(made["kept"])
    assert (found["by"], found["why"]) == ("sqnr", "as configured")
    assert {group["drop"] for group in found["groups"]} == {None}


def test_a_name_that_is_none_is_found_before_anything_is_measured(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"quantize\.keep names 'fpn\.laterl\.0'.*did you mean 'fpn\.lateral\.0'\?"):
        run(place, tmp_path, "quantize.keep=['fpn.laterl.0']")


def test_the_range_is_that_of_the_letterboxed_calibration_images(place: Path, tmp_path: Path) -> None:
    """Of no other images: the first layer's input can be worked out from the pixels."""
    only = ("quantize.images=1", "quantize.holdout=2", "seed=3")
    folder, _ = run(place, tmp_path, *only, "quantize.sensitivity=sqnr", "gates.int8_max_drop=null")
    calibration, _ = divide(read_coco(place / "train.json", place), 1, 2, seed=3)
    (image,) = calibration.images
    pixels = np.asarray(Image.open(place / image.file_name)).reshape(-1, 3)
    pixels = np.concatenate([pixels, np.full((1, 3), PADDING, np.uint8)])  # the input is higher than the image
    mean, std = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    extent = np.abs((pixels - mean) / std).max()
    model = onnx.load(folder / "student.int8.onnx")
    (first,) = (node for node in model.graph.node if node.op_type == "Conv" and "body.conv1" in node.input[1])
    scale = next(
        tensor for tensor in model.graph.initializer if tensor.name == first.input[0].split("_Dequ")[0] + "_scale"
    )
    assert float(numpy_helper.to_array(scale)) == pytest.approx(extent / 127, rel=1e-5)


def test_images_are_held_out_or_calibrated_on() -> None:
    empty = CocoImage(0, "", 1, 1, *(np.zeros((0, 4)),) * 4)
    data = CocoDataset(Path(), tuple(dataclasses.replace(empty, id=i) for i in range(30)), ())

    def ids(count: int, *sizes: int, seed: int = 0) -> tuple[list[int], list[int]]:
        parts = divide(data.first(count), *sizes, seed=seed)
        return [image.id for image in parts[0].images], [image.id for image in parts[1].images]

    for count, sizes, expected in (
        (30, (8, 4), (8, 4)),
        (30, (20, 10), (20, 10)),
        (30, (200, 100), (20, 10)),
        (2, (200, 1), (1, 1)),
        (1, (200, 100), (1, 0)),
    ):
        calibration, held = ids(count, *sizes)
        assert (len(calibration), len(held)) == expected
        assert len({*calibration, *held}) == sum(expected)
        assert calibration == sorted(calibration)
    assert ids(30, 8, 4) == ids(30, 8, 4)
    assert ids(30, 8, 4) != ids(30, 8, 4, seed=1)


def test_without_objects_nothing_is_claimed(place: Path, tmp_path: Path) -> None:
    data = read_coco(place / "train.json", place)
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "crowd": np.zeros(0), "area": np.zeros(0)}
    images = tuple(dataclasses.replace(image, **nothing) for image in data.images)
    write_coco(dataclasses.replace(data, images=images), place / "empty.json")
    folder, said = run(place, tmp_path, annotations="empty.json")
    made = read_json(folder / "quantization.json")["student_int8"]
    assert (made["drop"], made["source_AP"], made["kept"], made["steps"]) == (None, None, [], [])
    assert made["missing"] == {"drop": "no held-out image has an object, so there is no AP to lose"}
    assert read_json(folder / "sensitivity.json")["student_int8"]["by"] == "sqnr"
    assert said[-1] == "student.int8.onnx: AP not measured; every layer quantised"
