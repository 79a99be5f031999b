"""What is around Ultralytics' program; in its place stands a script that writes what was seen of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import yolo
from benchmarks.study_data import Split, StudyData
from benchmarks.yolo import Yolo, box_lines, write_data
from frs.data import write_coco
from tests.frs.data.scenes import dataset, scene

PROGRAM = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in
*"detect train"*)
    mkdir -p train/weights
    echo weights > train/weights/best.pt
    printf 'epoch,time,metrics/mAP50-95(B)\\n1,10.5,0.02\\n2,20.5,0.04\\n3,31.5,0.03\\n' > train/results.csv;;
*detect*) printf '                   all         72        945      0.422      0.307      0.354      0.124\\n';;
*format=onnx*) echo 'YOLO26n summary (fused): 120 layers, 2,375,421 parameters, 0 gradients, 5.3 GFLOPs';;
*) echo cannot do that; exit 3;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Yolo:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "yolo").write_text(PROGRAM)
    (tmp_path / "bin" / "yolo").chmod(0o755)
    return Yolo(tmp_path)


def calls(program: Yolo) -> list[str]:
    return (program.folder / "bin" / "calls").read_text().splitlines()


def test_boxes_become_centres_and_sides_in_parts_of_the_image() -> None:
    image = scene(1, 200, 100, [(20, 10, 40, 80), (0, 0, 200, 100)], labels=[2, 0])
    assert [[float(value) for value in line.split()] for line in box_lines(image)] == [
        [2, 0.2, 0.5, 0.2, 0.8],
        [0, 0.5, 0.5, 1.0, 1.0],
    ]


def test_crowds_are_left_out() -> None:
    image = replace(scene(1, 10, 10, [(0, 0, 5, 5), (5, 5, 5, 5)]), crowd=np.array([True, False]))
    assert box_lines(image) == ["0 0.75000000 0.75000000 0.50000000 0.50000000"]


def test_a_data_set_in_its_layout(tmp_path: Path) -> None:
    images = [scene(7, 20, 10, [(0, 0, 10, 10)], labels=[1]), scene(8, 20, 10, [])]
    for image in images:
        (tmp_path / image.file_name).write_text(str(image.id))
    write_coco(dataset(images, ["cup", "jug"], tmp_path), tmp_path / "coco.json")
    split = Split(tmp_path / "coco.json", tmp_path)
    written = write_data(
        StudyData("set", tmp_path / "unread.yaml", 32, 64, train=split, val=split, test=split), tmp_path / "yolo"
    )
    described = yaml.safe_load(written.read_text())
    assert described["names"] == {0: "cup", 1: "jug"}
    for name in ("train", "val", "test"):
        folder = Path(described["path"]) / described[name]
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"7.png": "7", "8.png": "8"}
        labels = {path.name: path.read_text().split() for path in (folder.parent / "labels").iterdir()}
        assert labels == {"7.txt": ["1", "0.25000000", "0.50000000", "0.50000000", "1.00000000"], "8.txt": []}


def test_what_it_prints_and_writes_is_read(program: Yolo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    data = tmp_path / "data.yaml"
    data.write_text("train: here")
    trained = yolo.train(program, tmp_path, data, 256, seconds=36, seed=4, recipe=["batch=8"])
    assert (trained.seconds, trained.epochs, trained.best_epoch) == (31.5, 3, 2)
    assert {"time=0.010000", "imgsz=256", "seed=4", "batch=8", "pretrained=False"} <= set(trained.step.command)
    exported = yolo.export(program, tmp_path, "export", trained.weights, 192, 256, "nms=False")
    assert exported.params == 2_375_421
    assert {"imgsz=192,256", "nms=False"} <= set(exported.step.command)
    assert (tmp_path / "export" / "best.pt").read_text() == trained.weights.read_text()
    exported.path.write_text("graph")
    assert yolo.own_ap(program, tmp_path, "val", exported.path, data)[1] == pytest.approx(12.4)


def test_a_step_is_done_again_only_with_other_weights(program: Yolo, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    for content, expected in (("first", 1), ("first", 1), ("second", 2)):
        weights.write_text(content)
        yolo.export(program, tmp_path, "export", weights, 32, 32)
        assert len(calls(program)) == expected


def test_a_step_that_fails_ends_the_program_and_is_done_again(program: Yolo, tmp_path: Path) -> None:
    for expected in (1, 2):
        with pytest.raises(SystemExit, match=r"ended with 3(.|\n)*settings\.log(.|\n)*cannot do that"):
            yolo._once(program, tmp_path, "settings", program.command("settings"))
        assert len(calls(program)) == expected


def test_more_threads_than_ours_are_refused(program: Yolo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    with pytest.raises(SystemExit, match="16 cores"):
        yolo.train(program, tmp_path, tmp_path / "data.yaml", 256, seconds=36, seed=0, recipe=[])


def test_its_processes_see_none_of_our_packages(program: Yolo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "PYTHONPATH" not in program.environment
    assert program.environment["YOLO_CONFIG_DIR"].startswith(str(program.folder))
