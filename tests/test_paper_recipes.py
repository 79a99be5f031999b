"""configs/paper is the paper's table 1 and mmdetection's recipes; `make smoke` runs what is read here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.loading import load_config
from pipeline.published import Published

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
# Du et al. 2021: family, epochs, milestones, lr, alpha, beta, the teacher's AP; short sides by mmdetection's pipelines.
TABLE = {
    "retinanet_r101_r50": ("retinanet", 24, (16, 22), 0.01, 0.005, 0.02, 38.9, (800,)),
    "fcos_r101_r50": ("fcos", 24, (16, 22), 0.01, 0.01, 0.05, 40.8, (640, 800)),
    "gfl_1x_r101_r50": ("gfl", 12, (8, 11), 0.01, 0.1, 0.05, 44.9, (800,)),
    "gfl_2x_r101_r50": ("gfl", 24, (16, 22), 0.01, 0.1, 0.05, 44.9, (480, 800)),
    "faster_rcnn_r101_r50": ("faster_rcnn", 12, (8, 11), 0.02, 0.002, 0.1, 39.4, (800,)),
}


def test_every_row_of_the_table_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_the_papers(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    family, epochs, milestones, lr, alpha, beta, teacher_ap, short_side = TABLE[name]
    train, detector = config.student.train, config.student.detector
    assert config.name == name
    assert (detector.family, detector.fpn_channels, detector.levels) == (family, 256, 5)
    assert (train.epochs, train.milestones, train.lr, train.short_side) == (epochs, milestones, lr, short_side)
    assert (config.distill.alpha, config.distill.beta, config.distill.warmup_steps) == (alpha, beta, 500)
    assert config.preflight.teacher_ap == teacher_ap
    assert (train.optimizer, train.momentum, train.weight_decay, train.schedule) == ("sgd", 0.9, 1e-4, "step")
    assert (train.warmup_steps, train.warmup_ratio, train.warmup_shape) == (500, 1e-3, "linear")
    assert (train.batch, train.long_side, train.resize, train.drop_empty) == (16, 1333, "shortest_edge", True)
    assert (train.frozen_stages, train.ema) == (1, None)
    assert train.frozen_norm in ("statistics", "all")
    assert train.augment.flip_horizontal
    assert not train.augment.flip_vertical
    assert config.control
    assert config.validation.resize == "both"
    checkpoint = config.teacher.checkpoint
    assert isinstance(checkpoint, Published)
    assert checkpoint.library == "mmdet"
    assert checkpoint.file is not None
    assert checkpoint.file.name.startswith(f"{family}_r101")
