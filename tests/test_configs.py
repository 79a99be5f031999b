"""Every file in configs/ is one that `run` takes; tests/test_paper_recipes.py says more of the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

import stages
from pipeline.loading import load_config

FILES = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_has_a_graph(path: Path) -> None:
    names = [stage.name for stage in stages.graph(load_config(path))]
    assert names[0] == "data"
    assert names[-1] == "report"
    assert len(names) == len(set(names))


def test_a_jetson_gets_what_its_tensorrt_takes() -> None:
    config = load_config(Path(__file__).parents[1] / "configs" / "jetson.yaml")
    assert config.quantised == ("int8", "int8+fp16")
    assert config.export.batch == 1
