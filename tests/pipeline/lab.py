"""A small real pipeline for the tests: three stages that read and write files, and a stand-in for the configuration."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pipeline.config import Config
from pipeline.console import Console
from pipeline.manifest import Manifest
from pipeline.plan import Step, plan
from pipeline.runner import run
from pipeline.stage import Context, Metrics, Stage


@dataclass(frozen=True)
class Settings:
    """What the pipeline uses of a configuration."""

    name: str
    values: Mapping[str, Any]
    seed: int = 0

    def section(self, key: str) -> Any:
        value: Any = self.values
        for part in key.split("."):
            value = value[part]
        return copy.deepcopy(value)

    def to_yaml(self) -> str:
        return json.dumps({"name": self.name, **self.values})


def settings(name: str, values: Mapping[str, Any]) -> Config:
    return cast(Config, Settings(name, values))


@dataclass
class Lab:
    """data -> teacher -> export. `ran` lists the stages that did work, `hooks` what a stage does besides."""

    folder: Path
    runs_name: str = "runs"
    ran: list[str] = field(default_factory=list)
    hooks: dict[str, Any] = field(default_factory=dict)
    torch: str = "2.13"
    version: int = 1
    failed_gates: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.values: dict[str, Any] = {
            "teacher": {"train": {"epochs": 10, "lr": 0.1}},
            "export": {"batch": 1, "precisions": ["fp32", "fp16"]},
        }
        self.folder.mkdir(exist_ok=True)
        self.annotations = self.folder / "annotations.txt"
        self.annotations.write_text("boxes")
        self.text = ""

    @property
    def runs(self) -> Path:
        return self.folder / self.runs_name

    def graph(self) -> tuple[Stage, ...]:
        return (
            Stage(
                name="data",
                inputs={},
                outputs={"table": "table.txt"},
                reads=(),
                version=1,
                run=self._data,
                external=lambda _: {"data.annotations": self.annotations},
            ),
            Stage(
                name="teacher",
                inputs={"table": "data/table"},
                outputs={"weights": "weights.bin", "history": "history"},
                reads=("teacher",),
                version=self.version,
                run=self._teacher,
                facts=lambda _: {"torch": self.torch},
                publish={"weights": "teacher.bin", "history": "history"},
            ),
            Stage(
                name="export",
                inputs={"weights": "teacher/weights"},
                outputs={"model": "model.onnx"},
                reads=("export",),
                version=1,
                run=self._export,
                publish={"model": "teacher.onnx"},
            ),
        )

    def config(self, name: str = "one") -> Config:
        return settings(name, self.values)

    def run(self, name: str = "one", *, graph: Sequence[Stage] | None = None, **options: Any) -> Manifest:
        """A run; `ran` afterwards lists what it did, `text` what it showed."""
        self.ran.clear()
        shown = io.StringIO()
        try:
            return run(self.config(name), graph or self.graph(), self.runs, console=Console(shown), **options)
        finally:
            self.text = shown.getvalue()

    def plan(self, name: str = "one", *, graph: Sequence[Stage] | None = None, **options: Any) -> dict[str, Step]:
        steps = plan(self.config(name), graph or self.graph(), self.runs, **options)
        return {step.stage.name: step for step in steps}

    def entries(self, stage: str) -> list[Path]:
        return sorted(path for path in (self.runs / ".store" / stage).iterdir() if path.is_dir())

    def _start(self, stage: str, context: Context) -> None:
        self.ran.append(stage)
        if stage in self.hooks:
            self.hooks[stage](context)

    def _data(self, context: Context) -> Metrics:
        self._start("data", context)
        context.outputs["table"].write_text(self.annotations.read_text().strip() + " in a table")
        return {"images": 3}

    def _teacher(self, context: Context) -> Metrics:
        self._start("teacher", context)
        recipe = json.dumps(context.config.section("teacher"))
        context.outputs["weights"].write_text(context.inputs["table"].read_text() + recipe)
        context.outputs["history"].mkdir()
        (context.outputs["history"] / "epochs.txt").write_text("1 2 3")
        return {"AP": 12.5}

    def _export(self, context: Context) -> Metrics:
        self._start("export", context)
        options = json.dumps(context.config.section("export"))
        context.outputs["model"].write_text(context.inputs["weights"].read_text() + options)
        return {"failed_gates": list(self.failed_gates)}
