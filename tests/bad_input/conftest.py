"""A place where a run has already ended well, to be given bad input: what it had must still be there afterwards."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli import main
from tests.frs.training.conftest import draw_rectangles

CONFIG: dict[str, Any] = {
    "version": 1,
    "name": "mine",
    "data": {
        "source": "coco",
        "train": {"annotations": "train/annotations.json", "images": "train/images"},
        "val": {"annotations": "val/annotations.json", "images": "val/images"},
    },
    "teacher": {"detector": {"backbone": "resnet18"}},
    "student": {"detector": {"backbone": "resnet10t"}},
}
REWRITTEN = ("runs/mine/config.yaml", "runs/mine/.lock", "runs/.store/.hashes.json")
"""What a `run` writes anew whatever comes of it, besides locks and unfinished work; none of its results is in these."""


@dataclass(frozen=True)
class Place:
    """The working directory: mine.yaml, two splits of pictures, and the folder `runs` that a run of them has left."""

    folder: Path

    def refuses(self, *arguments: str, code: int = 1) -> str:
        """What is said on standard error. Every result of the earlier run must be where it was."""
        before = self._results()
        result = call(*arguments)
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}"
        assert result.stderr.startswith("frs-pipeline: ")
        assert "This is a bug" not in result.output
        assert "Traceback" not in result.output
        assert "Warning" not in result.output
        after = self._results()
        assert before
        assert {name: after.get(name) for name in before} == before
        return result.stderr.removeprefix("frs-pipeline: ").rstrip("\n").replace(f"{self.folder}/", "")

    def accepts(self, *arguments: str) -> str:
        """What is said on standard output; nothing is said on standard error."""
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def configure(self, **changes: Any) -> None:
        (self.folder / "mine.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))

    def annotations(self, split: str) -> Any:
        return json.loads((self.folder / split / "annotations.json").read_text())

    def annotate(self, split: str, document: Any) -> None:
        (self.folder / split / "annotations.json").write_text(json.dumps(document))

    def _results(self) -> dict[str, Any]:
        """Every file that earlier runs have left, and what the manifest says of each stage."""
        found: dict[str, Any] = {}
        for path in sorted((self.folder / "runs").rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.name == "manifest.json":
                found |= {
                    f"{name}: {stage}": record for stage, record in json.loads(path.read_text())["stages"].items()
                }
            elif path.is_file() and ".partial" not in name and path.suffix != ".lock" and name not in REWRITTEN:
                found[name] = path.read_bytes()
        return found


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for split, count in (("train", 5), ("val", 3)):
        (folder / split).mkdir()
        draw_rectangles(folder / split, count)
    for image in (folder / "val" / "images").iterdir():  # the same generator drew the same pictures
        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _ in range(2):  # the second notes that the first's work was reused
            assert call("run", "mine.yaml", "--until", "data").exit_code == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = tmp_path / "place"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return Place(folder)
