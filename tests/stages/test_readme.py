"""The five steps of README.md, as they stand there, on a data set that is drawn here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from PIL import Image

from tests.frs.training.conftest import draw_rectangles
from tests.stages.conftest import frs_pipeline

README = Path(__file__).parents[2] / "README.md"

TINY = {
    "input": "{height: 64, width: 64}",
    "teacher.detector.weights": "null",
    "teacher.detector.backbone": "resnet18",
    "teacher.detector.backbone_options": "{channels: [8, 16, 24, 32], stem_width: 8}",
    "teacher.detector.fpn_channels": "16",
    "teacher.detector.head_depth": "1",
    "teacher.train.epochs": "2",
    "student.detector.weights": "null",
    "student.detector.backbone_options": "{channels: [8, 16, 24, 32], stem_width: 8}",
    "student.detector.fpn_channels": "16",
    "student.detector.head_depth": "1",
    "student.train.epochs": "2",
    "distill": "{auto_steps: 2, warmup_steps: 2}",
    "export.score_threshold": "0",
    "gates.int8_ap_drop": "null",  # of four images and a network of 32 steps, it is a matter of luck
    "profile": "{runs: 20, seconds: 0}",
    "runtime": "{device: cpu, threads: 1}",
}


def steps() -> list[list[str]]:
    """The commands of the section's block, split as a shell does; its comments are numbered."""
    section = README.read_text(encoding="utf-8").split("## Your own data set in five steps", 1)[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block
    assert re.findall(r"^# (\d)\.", block[1], re.MULTILINE) == ["1", "2", "3", "4", "5"]
    return [command for line in block[1].splitlines() if (command := shlex.split(line, comments=True))]


def test_the_five_steps_work_as_they_are_written(tmp_path: Path) -> None:
    draw_rectangles(tmp_path, count=20)
    (tmp_path / "images").rename(tmp_path / "photos")
    for image in sorted((tmp_path / "photos").iterdir()):
        Image.open(image).save(image.with_suffix(".jpg"), quality=95)
        image.unlink()
    annotations = tmp_path / "annotations.json"
    annotations.write_text(annotations.read_text().replace(".png", ".jpg"))

    overrides = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    said = {}
    for program, command, *arguments in steps():
        assert program == "frs-pipeline"
        tiny = overrides if command in ("check", "plan", "run") else []
        said[command] = frs_pipeline(command, *arguments, *tiny, cwd=tmp_path).stdout
    assert list(said) == ["init", "check", "plan", "run", "report", "predict"]
    assert "written: mine.train.json, mine.val.json, mine.yaml" in said["init"]
    assert "FAULT" not in said["check"]
    assert re.search(r"^data +run +never run$", said["plan"], re.MULTILINE)
    assert "student" in said["report"]
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert json.loads(said["predict"])[0]["image"] == "photos/1.jpg"
    assert (tmp_path / "predictions/1.png").is_file()
