from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pipeline.loading
from frs.errors import DataError
from pipeline import __version__
from pipeline.cli import main
from pipeline.errors import Busy, ConfigError
from pipeline.stage import Context
from stages.findings import Verdict
from tests.pipeline.lab import Lab

ROOT = Path(__file__).parents[2]


def module(name: str, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The command line drives the lab's stages; their package is the test's."""
    lab = Lab(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline.loading, "load_config", lambda path, overrides: lab.config(path.stem))
    monkeypatch.setitem(sys.modules, "stages", module("stages", graph=lambda config: lab.graph()))
    show = module("stages.report", show=lambda folders: f"the table of {', '.join(map(str, folders))}")
    monkeypatch.setitem(sys.modules, "stages.report", show)
    devices = module("stages.device.compare", show_devices=lambda folder: None)
    for name, inner in (("stages.device", module("stages.device")), ("stages.device.compare", devices)):
        monkeypatch.setitem(sys.modules, name, inner)
    return lab


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def fail(lab: Lab, stage: str, error: BaseException) -> None:
    def hook(_: Context) -> None:
        raise error

    lab.hooks[stage] = hook


def test_run_then_plan_then_run(lab: Lab) -> None:
    first = call("run", "one.yaml")
    assert first.exit_code == 0, first.output
    assert first.stdout.splitlines()[0] == "[1/3] data: starts (never run)"
    assert re.fullmatch(r"one: 3 of 3 stages ran, [\d.]+ s; results in runs/one", first.stdout.splitlines()[-1])
    assert first.stderr == ""
    lab.values["export"]["batch"] = 4
    planned = call("plan", "one.yaml")
    assert planned.stdout.splitlines() == [
        "data     reuse",
        "teacher  reuse",
        "export   run      config export.batch: 1 -> 4",
    ]
    lab.ran.clear()
    assert call("run", "one.yaml", "--until", "teacher", "--runs-dir", "runs").exit_code == 0
    assert lab.ran == []
    assert call("run", "one.yaml", "--force", "data", "--force", "teacher").exit_code == 0
    assert lab.ran == ["data", "teacher", "export"]


def test_overrides_reach_the_configuration(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []

    def load(path: Path, overrides: tuple[str, ...]) -> Any:
        got.append((path, overrides))
        return lab.config()

    monkeypatch.setattr(pipeline.loading, "load_config", load)
    call("plan", "one.yaml", "--set", "a.b=1", "--set", "c=[x]")
    assert got == [(Path("one.yaml"), ("a.b=1", "c=[x]"))]


def test_run_ends_with_the_report_when_the_report_stage_is_reached(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    data, teacher, export = lab.graph()
    graph = (data, teacher, replace(export, name="report"))
    monkeypatch.setitem(sys.modules, "stages", module("stages", graph=lambda config: graph))
    for _ in range(2):
        assert call("run", "one.yaml").stdout.splitlines()[-1] == "the table of runs/one"
    assert "the table" not in call("run", "one.yaml", "--until", "teacher").stdout
    lab.failed_gates = ["AP 3 is below 5"]
    failed = call("run", "one.yaml", "--force", "report")
    assert failed.exit_code == 3
    assert failed.stdout.splitlines()[-1] == "the table of runs/one"
    assert failed.stderr == (
        "frs-pipeline: one: 1 gate failed: AP 3 is below 5. Every stage was finished; see runs/one.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no boxes in train.json; add some"), 1, "stage data: no boxes in train.json; add some"),
        (ConfigError("x: unknown key"), 2, "stage data: x: unknown key"),
        (Busy("held by process 7"), 4, "stage data: held by process 7"),
        (KeyError("weights"), 1, "stage data: KeyError: 'weights'. This is a bug; --debug shows where"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "stage data: torch is not installed; pip install '.[train]' in the project's folder brings it; then give the same "
            "command again",
        ),
        (RuntimeError(), 1, "stage data: RuntimeError. This is a bug; --debug shows where"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/big/file"),
            1,
            "stage data: No space left on device: /big/file; make room and give the same command again, it continues",
        ),
        (DataError("class \x1b[31m"), 1, r"stage data: class \x1b[31m"),
    ],
)
def test_an_error_is_one_paragraph_and_a_code(lab: Lab, error: Exception, code: int, said: str) -> None:
    fail(lab, "data", error)
    result = call("run", "one.yaml")
    assert result.exit_code == code
    assert result.stderr == f"frs-pipeline: {said}\n"
    debugged = call("--debug", "run", "one.yaml")
    assert debugged.exit_code == code
    assert "Traceback" in debugged.stderr
    assert "in hook" in debugged.stderr
    assert debugged.stderr.endswith(f"frs-pipeline: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "one.yaml", "--until", "x"], "frs-pipeline: --until x: there is no such stage"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "one.yaml", "--frce", "x"], "No such option"),
        (["rnu"], "No such command 'rnu'"),
        (["predict", "student.onnx"], "Missing argument 'IMAGE...'"),
        (["predict", "student.onnx", "x.png", "--score", "2"], "Invalid value for '--score'"),
        (["report", "one"], "frs-pipeline: there is no run one in runs; there is none yet"),
    ],
)
def test_usage_errors_are_code_2(lab: Lab, arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_report_takes_a_name_or_a_folder(lab: Lab) -> None:
    call("run", "one.yaml")
    assert call("report", "one").stdout == "the table of runs/one\n"
    assert call("report", "runs/one").stdout == "the table of runs/one\n"
    assert "the runs are one." in call("report", "two").stderr


def test_check_lists_its_findings(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        (Verdict.OK, "torch", "2.14"),
        (Verdict.FAULT, "data.train", "2 images are missing\na.png\nb.png"),
        (Verdict.WARNING, "picture", "a\x1b[2J.png"),
    ]
    stand_in = module("stages.check", run_check=lambda config, out, progress: iter(findings))
    monkeypatch.setitem(sys.modules, "stages.check", stand_in)
    result = call("check", "one.yaml")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "ok       torch: 2.14",
        "FAULT    data.train: 2 images are missing",
        "           a.png",
        "           b.png",
        "warning  picture: a\\x1b[2J.png",
    ]
    assert "one.yaml: 1 of 3 checks found a fault" in result.stderr
    del findings[1]
    assert call("check", "one.yaml").exit_code == 0


def test_predict_prints_json(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_predict(artifact: Path, images: tuple[Path, ...], out: Path, score: float) -> list[dict[str, Any]]:
        return [{"artifact": str(artifact), "image": str(image), "out": str(out), "score": score} for image in images]

    monkeypatch.setitem(sys.modules, "stages.predict", module("stages.predict", run_predict=run_predict))
    result = call("predict", "s.onnx", "a.png", "b.png")
    assert json.loads(result.stdout) == [
        {"artifact": "s.onnx", "image": image, "out": "predictions", "score": 0.3} for image in ("a.png", "b.png")
    ]


def test_gc_reports_bytes(lab: Lab) -> None:
    call("run", "one.yaml")
    lab.values["export"]["batch"] = 4
    call("run", "one.yaml")
    assert "bytes in 1 folders would be deleted" in call("gc", "--dry-run").stdout
    assert "bytes in 1 folders deleted" in call("gc").stdout
    assert call("gc").stdout == "0 bytes in 0 folders deleted\n"


def test_help_names_commands_and_exit_codes() -> None:
    text = call("--help").stdout
    for command in ("init", "run", "plan", "check", "report", "predict", "gc"):
        assert f"\n  {command} " in text
        assert call(command, "--help").exit_code == 0
    for line in ("0  done", "2  a faulty configuration", "3  a gate", "4  another process", "130, 143  interrupted"):
        assert line in text
    for option in ("--until STAGE", "--force STAGE", "--set KEY=VALUE", "--runs-dir"):
        assert option in call("run", "--help").stdout
    assert call("--version").stdout == f"frs-pipeline {__version__}\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\n"
        "from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'pydantic', 'yaml', 'PIL', 'onnx', 'stages'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_pipeline_itself_imports_no_numbers() -> None:
    done = python(
        "import sys, pipeline.runner, pipeline.gc; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n"


def test_a_real_faulty_configuration(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nname: x\nteachr: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "bad.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert 'teachr: unknown key; did you mean "teacher"?' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_closed_pipe_is_not_a_bug(tmp_path: Path) -> None:
    command = f"{sys.executable} -m pipeline.cli --help | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
