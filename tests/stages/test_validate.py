"""Which rows the accuracy table has, and which of them the gain is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from frs.data import ShortestEdge
from pipeline.config import Config
from pipeline.loading import load_config
from stages.validate import file_stem, measured_file, resizes, scored_edge


def config(folder: Path, *overrides: str) -> Config:
    path = folder / "config.yaml"
    detector = {"detector": {"backbone": "resnet18"}}
    fields = {"version": 1, "name": "a", "data": {"source": "trees"}, "teacher": detector, "student": detector}
    path.write_text(yaml.safe_dump(fields))
    return load_config(path, overrides)


EDGE = "student.train.resize=shortest_edge"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ("letterbox",)),
        (("validation.resize=letterbox",), ("letterbox",)),
        (("validation.resize=both",), ("letterbox", "shortest_edge")),
        (("teacher.train.resize=shortest_edge",), ("letterbox",)),
        ((EDGE,), ("shortest_edge", "letterbox")),
        ((EDGE, "validation.resize=both"), ("shortest_edge", "letterbox")),
        ((EDGE, "validation.resize=shortest_edge"), ("shortest_edge",)),
    ],
)
def test_the_resize_of_the_students_training_comes_first(
    tmp_path: Path, overrides: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    made = config(tmp_path, *overrides)
    assert resizes(made) == expected
    suffix = "-shortest_edge" if expected[0] == "shortest_edge" else ""
    assert measured_file(made, "control") == f"control-torch-fp32-reference{suffix}.json"


def test_the_size_is_the_greatest_of_the_training_unless_it_is_given(tmp_path: Path) -> None:
    trained = ("student.train.short_side=[640, 800]", "student.train.long_side=1400")
    assert scored_edge(config(tmp_path, *trained)) == ShortestEdge((800,), 1400)
    given = ("validation.short_side=600", "validation.long_side=1000")
    assert scored_edge(config(tmp_path, *trained, *given)) == ShortestEdge((600,), 1000)


def test_no_two_rows_share_their_predictions() -> None:
    def row(resize: str, decode: str) -> dict[str, Any]:
        return {"model": "m", "runtime": "torch", "precision": "fp32", "decode": decode, "input": {"resize": resize}}

    rows = [row("letterbox", "reference"), row("shortest_edge", "reference"), row("letterbox", "graph")]
    assert len({file_stem(each) for each in rows}) == 3
