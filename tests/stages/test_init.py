"""`frs-pipeline init`: what it writes loads, is right about the data, and cannot be broken out of."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from frs.errors import DataError
from pipeline.config import CocoData, Config
from pipeline.errors import ConfigError
from pipeline.loading import load_config
from stages.check import run_check
from stages.init import quoted, run_init
from tests.stages.conftest import frs_pipeline


def photographs(folder: Path, objects: Sequence[Sequence[int]], classes: Sequence[str], size: tuple[int, int]) -> None:
    """folder/images and folder/annotations.json; an image with one 30 px object of each of these classes each."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(1)
    images: list[Any] = []
    annotations: list[Any] = []
    for number, labels in enumerate(objects, start=1):
        name = f"{number}.png"
        pixels = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for place, label in enumerate(labels):
            box = [40 * place, 10, 30, 30]
            entry = {"image_id": number, "category_id": label + 1, "bbox": box, "area": 900, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document))


def init(folder: Path, **options: Any) -> tuple[Config, str]:
    """The configuration that is written for folder/annotations.json, loaded, and its text."""
    options = {"val": None, "out": folder / "mine.yaml", "name": None} | options
    run_init(folder / "annotations.json", folder / "images", **options)
    config = load_config(options["out"])
    assert [finding for finding in run_check(config) if not finding[0]] == []
    return config, options["out"].read_text(encoding="utf-8")


def hashes(annotations: Path, images: Path) -> set[str]:
    entries = json.loads(annotations.read_text())["images"]
    return {hashlib.sha256((images / entry["file_name"]).read_bytes()).hexdigest() for entry in entries}


def test_a_data_set_without_validation_images_is_split(tmp_path: Path) -> None:
    photographs(tmp_path, [[0, 1]] * 30, ["cat", "dog"], (320, 240))
    config, text = init(tmp_path)
    assert isinstance(config.data, CocoData)
    train, val = config.data.train, config.data.val
    assert not hashes(train.annotations, train.images) & hashes(val.annotations, val.images)
    assert (train.images, val.images) == (tmp_path / "images", tmp_path / "images")
    assert "6 of the 30 were set aside" in text
    theirs = COCO(tmp_path / "annotations.json")  # pycocotools reads both, and finds the same boxes
    for split in (train, val):
        ours = COCO(split.annotations)
        for image in ours.getImgIds():
            boxes = [[annotation["bbox"] for annotation in each.imgToAnns[image]] for each in (ours, theirs)]
            assert boxes[0] == boxes[1]


def test_given_validation_images_are_taken_as_they_are(tmp_path: Path) -> None:
    for split in ("train", "val"):
        photographs(tmp_path / split, [[0]] * 12, ["cat"], (320 if split == "train" else 310, 240))
    val = (tmp_path / "val/annotations.json", tmp_path / "val/images")
    config, text = init(tmp_path / "train", val=val, out=tmp_path / "both.yaml")
    assert isinstance(config.data, CocoData)
    assert config.name == "both"
    assert config.data.val.annotations == val[0]
    assert config.data.train.annotations == tmp_path / "train/annotations.json"
    assert 'annotations: "train/annotations.json"' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.yaml", "train", "val"]


def test_the_figures_are_those_of_the_training_split(tmp_path: Path) -> None:
    """By hand: 8 images of 10 with three objects of 30 px, on 640 x 480 px."""
    photographs(tmp_path, [[0, 1, 2]] * 10, ["cat", "dog", "cow"], (640, 480))
    config, text = init(tmp_path)
    assert "# 8 images, 24 objects, 3 classes." in text
    assert "# The median image is 640 x 480 px (width x height)" in text
    assert "median object is 30 px" in " ".join(text.replace("#", " ").split())
    assert (config.input.height, config.input.width) == (384, 512)  # 24 px of 30 are 0.8
    assert (config.teacher.train.batch, config.teacher.train.epochs) == (1, 100)  # 8 steps an epoch
    assert "# 800 steps; aimed at: 3,000, in 12 to 100 epochs." in text
    assert (config.distill.warmup_steps, config.export.candidates) == (160, 300)
    assert config.gates.parity_min_boxes == 6
    for model in (config.teacher, config.student):
        assert model.detector is not None
        assert model.detector.levels == 3
        assert model.train.augment.flip_horizontal


def test_negative_images_are_kept_unless_they_are_most(tmp_path: Path) -> None:
    photographs(tmp_path / "few", [[0]] * 20 + [[]] * 5, ["cat"], (320, 240))
    config, text = init(tmp_path / "few")
    assert not config.teacher.train.drop_empty
    assert "# 4 of 20 images have no object: kept" in text
    photographs(tmp_path / "many", [[0]] * 20 + [[]] * 30, ["cat"], (320, 240))
    config, text = init(tmp_path / "many")
    assert config.teacher.train.drop_empty
    assert config.student.train.drop_empty
    assert "# 24 of 40 images have no object, more than half: left out" in text
    assert config.teacher.train.batch == 1  # of the 16 that are left


@pytest.mark.parametrize("name", ["left hand", "Turn-RIGHT", "7", "b"])
def test_what_a_mirror_makes_another_class_is_not_mirrored(tmp_path: Path, name: str) -> None:
    photographs(tmp_path, [[0, 1]] * 5, ["cat", name], (320, 240))
    config, text = init(tmp_path)
    assert not config.teacher.train.augment.flip_horizontal
    assert not config.student.train.augment.flip_horizontal
    assert f'The mirror image of "{name}"' in text


def test_a_class_that_only_one_image_has_is_named(tmp_path: Path) -> None:
    photographs(tmp_path, [[0]] * 9 + [[0, 1]], ["cat", "unicorn"], (320, 240))
    said = run_init(tmp_path / "annotations.json", tmp_path / "images", val=None, out=tmp_path / "a.yaml", name=None)
    assert 'Classes too rare to be on both sides: "unicorn".' in said[0]


@pytest.mark.parametrize(
    "folder",
    ["a b", "a #b: c", 'it\'s "quoted"', "[x]", "ünï/日本 🌳", "~", "~nobody", "new\nline\u2028", "- x", "{{$name}}"],
)
def test_any_path_can_be_named(tmp_path: Path, folder: str) -> None:
    photographs(tmp_path / folder, [[0]] * 5, ["cat"], (320, 240))
    run_init(
        tmp_path / folder / "annotations.json",
        tmp_path / folder / "images",
        val=None,
        out=tmp_path / "mine.yaml",
        name=None,
    )
    config = load_config(tmp_path / "mine.yaml")
    assert isinstance(config.data, CocoData)
    assert config.data.train.images == tmp_path / folder / "images"
    assert config.data.val.annotations == tmp_path / "mine.val.json"


@given(st.text())
def test_a_quoted_text_is_itself_on_one_line(text: str) -> None:
    line = quoted(text)
    assert yaml.safe_load(f"a: [{line}] # x")["a"] == [text]
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(f"# {line}\nb: 1") == {"b": 1}


def test_a_class_cannot_write_into_the_configuration(tmp_path: Path) -> None:
    evil = 'cat\nseed: 7\r\x85\u2028runtime: {device: cuda} # "${name}'
    photographs(tmp_path, [[0]] * 9 + [[1]], [evil, "left\nseed: 8"], (320, 240))
    config, text = init(tmp_path)
    assert config.seed == 0
    assert config.runtime.device == "auto"
    assert "cat\\nseed" in text


def test_a_data_set_below_the_configuration_moves_with_it(tmp_path: Path) -> None:
    photographs(tmp_path / "here", [[0]] * 10, ["cat"], (320, 240))
    init(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    config = load_config(tmp_path / "there/mine.yaml")
    assert all(fine for fine, _, _ in run_check(config))
    photographs(tmp_path / "elsewhere", [[0]] * 10, ["cat"], (320, 240))
    (tmp_path / "configs").mkdir()
    _, text = init(tmp_path / "elsewhere", out=tmp_path / "configs/far.yaml")
    assert f'images: "{tmp_path}/elsewhere/images"' in text


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    photographs(tmp_path, [[0]] * 10, ["cat"], (320, 240))
    for name in ("mine.yaml", "mine.train.json", "mine.val.json"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(ConfigError, match=f"{name} is there already; choose another --out or --name"):
            init(tmp_path)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images"]
    with pytest.raises(ConfigError, match="there is no such folder"):
        init(tmp_path, out=tmp_path / "gone/mine.yaml")
    with pytest.raises(ConfigError, match="cannot be the name of the run, which is up to 64 letters"):
        init(tmp_path, name="../mine")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    photographs(tmp_path, [[0]] * 40, ["cat"], (320, 240))
    words = ("init", "--coco", "annotations.json", "--images", "images")
    limited = f"ulimit -f 4; exec {sys.executable} -m pipeline.cli {' '.join(words)}"  # 4 KiB a file; train.json is 6
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images"]
    frs_pipeline(*words, cwd=tmp_path)


def test_the_same_data_set_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        photographs(tmp_path / folder, [[i % 2] for i in range(20)], ["cat", "dog"], (320, 240))
        init(tmp_path / folder)
        written.append([(tmp_path / folder / f"mine.{end}").read_bytes() for end in ("yaml", "train.json", "val.json")])
    assert written[0] == written[1]


def test_faults_in_the_data_set_are_said_as_they_are(tmp_path: Path) -> None:
    photographs(tmp_path, [[0]] * 3, ["cat"], (320, 240))
    (tmp_path / "images/2.png").unlink()
    with pytest.raises(DataError, match=r"image 2 \(2.png\): there is no"):
        init(tmp_path)
    assert not (tmp_path / "mine.yaml").exists()
    photographs(tmp_path / "empty", [[], []], ["cat"], (320, 240))
    with pytest.raises(DataError, match="there is not one object that is no crowd"):
        init(tmp_path / "empty")


def test_on_the_command_line(tmp_path: Path) -> None:
    photographs(tmp_path, [[0]] * 10, ["cat"], (320, 240))
    done = frs_pipeline("init", "--coco", "annotations.json", "--images", "images", cwd=tmp_path)
    assert "train: 8 images, 8 objects, 1 class. No validation images were given: 2 of the 10" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "written: mine.train.json, mine.val.json, mine.yaml. Next: frs-pipeline check mine.yaml"
    )
    again = frs_pipeline("init", "--coco", "annotations.json", "--images", "images", cwd=tmp_path, check=False)
    assert again.returncode == 2
    assert (
        again.stderr == "frs-pipeline: mine.train.json is there already; choose another --out or --name, or remove it\n"
    )
    alone = ("init", "--coco", "annotations.json", "--images", "images", "--val-images", "images")
    assert "--val-images needs --val-coco" in frs_pipeline(*alone, cwd=tmp_path, check=False).stderr


@pytest.mark.skipif("FRS_DATA" not in os.environ, reason="FRS_DATA names no folder with COCO data sets")
def test_data_sets_of_others(tmp_path: Path) -> None:
    """FRS_DATA/<set>/annotations/*train*.json, with images in a folder of the same <set>."""
    found = sorted(Path(os.environ["FRS_DATA"]).glob("*/annotations/*train*.json"))
    tried = 0
    for file in found:
        document = json.loads(file.read_text())
        if not all("bbox" in each for each in document["annotations"]):  # captions
            continue
        name = document["images"][0]["file_name"]
        images = next(path.parent for path in file.parents[1].glob(f"*/{name}"))
        out = tmp_path / f"{file.parents[1].name}-{file.stem}.yaml"
        run_init(file, images, val=None, out=out, name=None)
        assert [finding for finding in run_check(load_config(out)) if not finding[0]] == []
        tried += 1
    assert tried
