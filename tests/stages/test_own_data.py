"""A user's own COCO data set through the data stage and `check`, by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.frs.training.conftest import draw_rectangles
from tests.stages.conftest import frs_pipeline


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with mine.yaml and two small splits beside it."""
    for split, count in (("train", 5), ("val", 3)):
        (tmp_path / split).mkdir()
        draw_rectangles(tmp_path / split, count)
    for image in (tmp_path / "val" / "images").iterdir():  # the same generator drew the same pictures
        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    config = {
        "version": 1,
        "name": "mine",
        "data": {
            "source": "coco",
            **{
                split: {"annotations": f"{split}/annotations.json", "images": f"{split}/images"}
                for split in ("train", "val")
            },
        },
        "teacher": {"detector": {"backbone": "resnet18"}},
        "student": {"detector": {"backbone": "resnet10t"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def stored(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs/.store/data").iterdir() if path.is_dir())


def test_images_are_listed_by_content_and_stay_where_they_are(mine: Path) -> None:
    done = frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine)
    assert "train: 5 images, 10 boxes" in done.stdout
    outputs = stored(mine)[0] / "outputs"
    hashes = json.loads((outputs / "images.json").read_text())
    assert set(hashes["val"]) == {"1.png", "2.png", "3.png"}
    assert list((outputs / "images").iterdir()) == []
    assert json.loads((outputs / "train.json").read_text())["categories"] == [{"id": 7, "name": "rectangle"}]


def test_a_changed_image_is_another_data_set_and_a_moved_folder_is_not(mine: Path, tmp_path: Path) -> None:
    frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mine.yaml", "train", "val", "runs"):
        shutil.move(mine / name, moved / name)
    assert "reused" in frs_pipeline("run", "mine.yaml", "--until", "data", cwd=moved).stdout
    Image.new("RGB", (64, 64), (9, 9, 9)).save(moved / "train" / "images" / "2.png")
    done = frs_pipeline("plan", "mine.yaml", "--until", "data", cwd=moved)
    assert "file data.train.images/2.png changed" in done.stdout
    frs_pipeline("run", "mine.yaml", "--until", "data", cwd=moved)
    assert len(stored(moved)) == 2


def test_an_image_in_both_splits_is_refused(mine: Path) -> None:
    shutil.copy(mine / "train/images/4.png", mine / "val/images/1.png")
    done = frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine, check=False)
    assert done.returncode == 1
    assert "1 image is in both splits (first: 4.png in train is 1.png in val)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_split_without_an_object_is_refused(mine: Path) -> None:
    annotations = mine / "val/annotations.json"
    annotations.write_text(json.dumps({**json.loads(annotations.read_text()), "annotations": []}))
    done = frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine, check=False)
    assert done.returncode == 1
    assert "the val split has not one object" in done.stderr


def test_splits_of_other_categories_are_refused(mine: Path) -> None:
    annotations = mine / "val/annotations.json"
    annotations.write_text(annotations.read_text().replace('"rectangle"', '"square"'))
    done = frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine, check=False)
    assert done.returncode == 1
    assert "do not have the same categories (7 rectangle, 7 square are in one alone)" in done.stderr


def test_faults_in_the_data_set_are_one_paragraph(mine: Path) -> None:
    (mine / "val/images/3.png").unlink()
    done = frs_pipeline("run", "mine.yaml", "--until", "data", cwd=mine, check=False)
    assert done.returncode == 1
    assert "val/annotations.json: 1 image is missing (first:" in done.stderr
    assert "Traceback" not in done.stderr
    found = frs_pipeline("check", "mine.yaml", cwd=mine, check=False)
    assert found.returncode == 1
    assert "FAULT    data.val: 1 image is missing\n           image 3 (3.png): there is no" in found.stdout


def test_check_names_weights_that_are_not_there(mine: Path) -> None:
    done = frs_pipeline("check", "mine.yaml", "--set", "student.detector.weights=gone.pth", cwd=mine, check=False)
    assert "gone.pth: no such file" in done.stdout
    done = frs_pipeline("check", "mine.yaml", "--set", "teacher.checkpoint=gone.safetensors", cwd=mine, check=False)
    assert "gone.safetensors: no such file" in done.stdout


def test_check_names_a_backbone_that_has_no_stages_to_freeze(mine: Path) -> None:
    lite = ["--set", "student.detector={backbone: tf_efficientnet_lite0}"]
    frozen = ["--set", "student.train.frozen_stages=1"]
    done = frs_pipeline("check", "mine.yaml", *lite, *frozen, cwd=mine, check=False)
    assert done.returncode == 1
    assert "FAULT    student.detector: train.frozen_stages is 1, but the backbone tf_efficientnet_lite0" in done.stdout


def test_predict_refuses_what_is_not_ours_in_one_paragraph(mine: Path) -> None:
    (mine / "some.onnx").write_text("no ONNX file")
    done = frs_pipeline("predict", "some.onnx", "train/images/1.png", cwd=mine, check=False)
    assert done.returncode == 1
    assert "some.onnx" in done.stderr
    assert "Traceback" not in done.stderr
