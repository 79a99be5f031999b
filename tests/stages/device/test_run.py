"""`frs-pipeline device run` on a small real bundle: ONNX Runtime scores and times, TensorRT-RTX builds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from frs.export.engine import EngineReport
from pipeline.cli import main
from pipeline.console import Console
from pipeline.deployment import EngineConfig
from pipeline.files import locked
from stages.device.measure import Measurement
from stages.device.work import opened
from tests.packages import from_the_index
from tests.stages.device.small_bundle import IMAGES, SETTINGS, write_small
from tests.stages.report.browser import CHROMIUM, visit

Made = dict[str, tuple[bytes, dict[str, Any]]]
ROOT = Path(__file__).parents[3]


def command(bundle: Path, results: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "device", "run", str(bundle), "-o", str(results)]


def run(bundle: Path, results: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, to its end."""
    done = subprocess.run(command(bundle, results), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "This is a bug" not in done.stderr
    return done


def document(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "device.json").read_text())
    return found


def steps(results: Path) -> dict[str, tuple[int, bytes]]:
    """Every finished step: when it was written, and what."""
    found = (results / ".work").glob("[eps][nrc]*.json")
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.fixture(scope="module")
def measured(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The results of a run that went well, and what it said."""
    results = tmp_path_factory.mktemp("device") / "results"
    return results, run(small, results).stdout


def test_device_json_keeps_its_schema(measured: tuple[Path, str], small: Path) -> None:
    found = document(measured[0])
    assert set(found) == {
        "schema", "kind", "name", "device", "created", "bundle_sha256", "environment", "classes", "models", "data", "files",
        "accuracy", "profiles", "engines", "parity", "gates", "notes",
    }  # fmt: skip
    assert (found["schema"], found["kind"], found["name"]) == (1, "device", "small")
    assert found["bundle_sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    assert list(found["models"]) == ["teacher", "student"]
    assert found["data"]["val"]["images"] == IMAGES
    assert {(f["model"], f["kind"], f["file"]) for f in found["files"]} == {
        ("teacher", "fp32", "teacher.onnx"),
        ("student", "fp32", "student.onnx"),
    }
    assert [(row["model"], row["runtime"]) for row in found["profiles"]] == [
        ("teacher", "onnxruntime"),
        ("student", "onnxruntime"),
    ]
    assert all(row["latency_ms"]["runs"] >= 20 and row["threads"] == 1 for row in found["profiles"])
    assert set(found["environment"]) == {"machine", "packages", "conditions"}


def test_a_file_scores_as_torch_did(measured: tuple[Path, str]) -> None:
    """The teacher is sure of what the annotations say; the student, another network, is not."""
    ap = {(row["model"], row["runtime"]): row["AP"] for row in document(measured[0])["accuracy"]}
    assert ap["teacher", "onnxruntime"] == pytest.approx(ap["teacher", "torch"], abs=0.1)
    assert ap["student", "onnxruntime"] == pytest.approx(ap["student", "torch"], abs=0.1)
    assert ap["teacher", "torch"] > 50 > ap["student", "torch"]


def test_its_gates_are_those_of_the_run(measured: tuple[Path, str]) -> None:
    gates = document(measured[0])["gates"]
    assert {gate["name"] for gate in gates if gate["name"].startswith("ap_drop.")} == {
        "ap_drop.teacher_fp32",
        "ap_drop.student_fp32",
    }
    assert {name.split(".")[1] for gate in gates if (name := gate["name"]).startswith("parity.")} == {
        "teacher_fp32",
        "student_fp32",
    }
    assert all(gate["passed"] and gate["measured_on"] for gate in gates)


def test_engines_are_built_and_what_cannot_run_them_says_so(measured: tuple[Path, str]) -> None:
    results, said = measured
    engines = document(results)["engines"]
    if not engines:
        pytest.skip("no TensorRT is installed here")
    assert [(row["model"], row["precision"]) for row in engines] == [("teacher", "fp32"), ("student", "fp32")]
    for row in engines:
        plan = results / "engines" / f"{row['model']}.plan"
        assert hashlib.sha256(plan.read_bytes()).hexdigest() == row["plan_sha256"]
        sidecar = json.loads(plan.with_name(plan.name + ".json").read_text())
        assert json.loads(sidecar["properties"]["precision"]) == "fp32"
    if all(row["proven"] == "planned" for row in engines):
        note = "The engines were built, and nothing here can run them: they were not scored or timed."
        assert note in document(results)["notes"]
        assert note in said


def test_the_table_says_what_was_measured(measured: tuple[Path, str]) -> None:
    results, said = measured
    assert re.search(r"student fp32 +│ ONNX Runtime", said)
    assert "The student in fp32: " in said
    assert re.search(r"Gates: (\d+) of \1 passed", said)
    assert f"Report: {results / 'device.html'}" in said


def test_the_page_escapes_what_came_with_the_bundle(measured: tuple[Path, str]) -> None:
    page = (measured[0] / "device.html").read_text()
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "{{" not in page
    for heading in ("What each file does here", "What the student sees", "Latency", "Memory and energy"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/jpeg") == 2 * 4


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_opens_the_page_and_asks_for_nothing(measured: tuple[Path, str], tmp_path: Path) -> None:
    seen = visit(measured[0] / "device.html", tmp_path)
    assert (seen.console, seen.requests) == ([], [])


def test_a_second_call_takes_only_the_times_anew(measured: tuple[Path, str], small: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(measured[0], results)
    before = steps(results)
    assert len(before) >= 3
    run(small, results)
    assert steps(results) == before
    now, then = document(results), document(measured[0])
    assert {key for key in now if now[key] != then[key]} >= {"created", "profiles"}
    assert (now["accuracy"], now["engines"], now["gates"]) == (then["accuracy"], then["engines"], then["gates"])


def test_images_are_not_left_behind(measured: tuple[Path, str]) -> None:
    suffixes = {path.suffix for path in measured[0].rglob("*") if path.is_file()}
    assert ".png" not in suffixes
    assert ".onnx" not in suffixes


def test_a_killed_run_goes_on(small: Path, tmp_path: Path) -> None:
    results, until = tmp_path / "results", "score-teacher.onnx"
    process = subprocess.Popen(command(small, results), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    patience = time.monotonic() + 120
    while not (results / ".work" / f"{until}.json").exists() and time.monotonic() < patience:
        time.sleep(0.005)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while _alive(process.pid):  # nothing works on, unseen
        assert time.monotonic() < patience
        time.sleep(0.005)
    finished = steps(results)
    assert f"{until}.json" in finished
    assert not (results / "device.json").exists()
    run(small, results)
    again = steps(results)
    assert {name: again[name] for name in finished} == finished
    assert set(again) > set(finished)
    assert len(document(results)["profiles"]) == 2


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def changed(made: Made, tmp_path: Path, name: str, content: bytes) -> Path:
    """The small bundle with another content of one member, and whole in itself."""
    return write_small(tmp_path / "changed.tar", {**made, name: (content, made[name][1])})


def test_a_file_that_nothing_takes_does_not_stop_the_others(made: Made, tmp_path: Path) -> None:
    bundle = changed(made, tmp_path, "models/student.onnx", b"no graph")
    done = run(bundle, tmp_path / "results", code=3)
    found = document(tmp_path / "results")
    assert [row["model"] for row in found["profiles"]] == ["teacher"]
    failed = {gate["name"]: gate for gate in found["gates"] if not gate["passed"]}
    assert "ap_drop.student_fp32" in failed
    assert all("student_fp32" in name and gate["value"] is None for name, gate in failed.items())
    assert any("student fp32 in ONNX Runtime: not scored" in note for note in found["notes"])
    assert "ap_drop.student_fp32: not measured" in done.stderr
    page = (tmp_path / "results" / "device.html").read_text()
    assert "Nothing of the student was both scored and timed here" in page
    if found["engines"]:
        assert {row["model"]: row["proven"] for row in found["engines"]}["student"] == "failed"


def test_a_file_that_cannot_be_timed_is_left_out_of_the_turn(made: Made, tmp_path: Path) -> None:
    settings = {**SETTINGS, "profile": {**SETTINGS["profile"], "batches": [2]}}
    bundle = write_small(tmp_path / "b.tar", made, settings)  # the graphs take one image
    run(bundle, tmp_path / "results")
    found = document(tmp_path / "results")
    assert found["profiles"] == []
    assert [row["AP"] is not None for row in found["accuracy"]] == [True] * 4
    assert sum("not timed" in note for note in found["notes"]) == 2


def test_nothing_at_all_could_be_measured(made: Made, tmp_path: Path) -> None:
    broken = {
        name: (b"no graph" if name.endswith(".onnx") else content, facts) for name, (content, facts) in made.items()
    }
    done = run(write_small(tmp_path / "b.tar", broken), tmp_path / "results", code=1)
    assert "nothing could be measured" in done.stderr
    assert (tmp_path / "results" / "device.html").exists()


def refused(bundle: Path, results: Path, code: int) -> str:
    """What is said on standard error; nothing was measured."""
    done = CliRunner().invoke(main, ["device", "run", str(bundle), "-o", str(results)])
    assert done.exit_code == code, done.output
    assert "This is a bug" not in done.output
    assert not (results / "device.html").exists()
    return done.stderr


HOSTILE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "rows of another kind": ("reference/student.json", lambda rows: {"rows": rows}, "no list of detections"),
    "a row that is none": ("reference/student.json", lambda rows: [*rows, 3], "no list of detections"),
    "a box of text": ("reference/student.json", lambda rows: [{**rows[0], "bbox": ["a"] * 4}], "no list of detections"),
    "a box beyond any": ("reference/student.json", lambda rows: [{**rows[0], "bbox": [0, 0, 10**400, 1]}], "no list of"),
    "a score of 400 digits": ("reference/student.json", lambda rows: [{**rows[0], "score": 10**400}], "no list of detections"),
    "an unknown image": ("reference/student.json", lambda rows: [{**rows[0], "image_id": 99}], "image 99"),
    "an unknown class": ("reference/student.json", lambda rows: [{**rows[0], "category_id": 99}], "category 99"),
    "other categories": ("annotations.json", lambda d: {**d, "categories": d["categories"][:2], "annotations": []}, "categor"),
    "a way out": ("annotations.json", lambda d: {**d, "images": [{**d["images"][0], "file_name": "../x.png"}]}, "file_name"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_bundle_brings_is_not_trusted(made: Made, tmp_path: Path, what: str) -> None:
    name, change, says = HOSTILE[what]
    content = json.dumps(change(json.loads(made[name][0]))).encode()
    assert says in refused(changed(made, tmp_path, name, content), tmp_path / "results", 1)


@pytest.mark.parametrize("wrong", [{"detections": 0}, {"score_threshold": 10**400}, {"score_threshold": -0.1}])
def test_thresholds_that_no_graph_has(made: Made, tmp_path: Path, wrong: dict[str, float]) -> None:
    thresholds = {"score_threshold": 0.05, "detections": 100, **wrong}
    bundle = write_small(tmp_path / "b.tar", made, thresholds=thresholds)
    assert "thresholds are not" in refused(bundle, tmp_path / "results", 1)


def test_settings_of_another_version(made: Made, tmp_path: Path) -> None:
    settings = {**SETTINGS, "gates": {**SETTINGS["gates"], "beauty": 1}}
    said = refused(write_small(tmp_path / "b.tar", made, settings), tmp_path / "results", 1)
    assert "install the same version on both machines" in said


def test_results_of_another_bundle_stay(measured: tuple[Path, str], made: Made, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(measured[0], results)
    before = (results / "device.json").read_bytes()
    other = write_small(tmp_path / "b.tar", made, {**SETTINGS, "engine": {**SETTINGS["engine"], "timeout_s": 1.0}})
    for work in ("there", "gone"):
        if work == "gone":
            shutil.rmtree(results / ".work")
        done = CliRunner().invoke(main, ["device", "run", str(other), "-o", str(results)])
        assert done.exit_code == 2
        assert "holds the results of another bundle" in done.stderr
        assert "name another folder with -o" in done.stderr
        assert (results / "device.json").read_bytes() == before


def test_a_kill_before_it_said_of_which_archive(small: Path, made: Made, tmp_path: Path) -> None:
    """What lies there may be another bundle's."""
    first, second = tmp_path / "first", tmp_path / "second"
    rows = json.loads(made["reference/student.json"][0])
    other = changed(made, tmp_path, "reference/student.json", json.dumps(rows[:1]).encode())
    with opened(small, first) as work:
        shutil.copytree(work.bundle.folder, second / ".work" / "bundle")
    with opened(other, second) as work:
        assert json.loads(work.bundle.reference("student").read_text()) == rows[:1]


def test_an_engine_is_built_by_the_settings_of_the_run(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def build(onnx: Path, plan: Path, **options: Any) -> EngineReport:
        asked.append(options)
        return EngineReport(None, None, None, None, None, "none here", 0.0, None)

    monkeypatch.setattr("frs.export.engine.build_engine", build)
    settings = EngineConfig(batches=(2, 3, 4), workspace_mb=77, timeout_s=5.0, target="sm_89")
    with opened(small, tmp_path / "results") as work:
        Measurement(work, {}, Console(io.StringIO())).build_engines(settings)
    wanted = settings.model_dump(exclude={"target"})  # the device is what it is built for
    assert {key: asked[0][key] for key in wanted} == wanted
    assert "target" not in asked[0]


def test_two_at_once(small: Path, tmp_path: Path) -> None:
    def busy(_: int | None) -> None:
        raise AssertionError

    with locked(tmp_path / "results" / ".work" / "lock", busy=busy):
        said = refused(small, tmp_path / "results", 4)
    assert f"process {os.getpid()} measures into this folder already" in said


def test_no_bundle(tmp_path: Path) -> None:
    archive = tmp_path / "b.tar"
    archive.write_bytes(b"not at all")
    assert f"{archive}: not a bundle" in refused(archive, tmp_path / "results", 1)
    assert "cannot be read" in refused(tmp_path / "none.tar", tmp_path / "results", 1)


INSTALLED = (
    "click",
    "numpy",
    "pillow",
    "pydantic",
    "PyYAML",
    "rich",
    "pycocotools",
    "jinja2",
    "psutil",
    "nvidia-ml-py",
)
"""The base install and the extra `device`, but CUDA's bindings, which only a TensorRT session imports."""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment such as a device has, with the versions that are installed here."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    _install(folder, *INSTALLED)
    return folder / "bin" / "python"


def _install(folder: Path, *names: str) -> None:
    needed = [f"{name}=={metadata.version(name)}" for name in names]
    from_the_index("--python", folder, "install", "--quiet", "--only-binary=:all:", *needed)


def test_a_device_without_torch(bare_python: Path, small: Path, tmp_path: Path) -> None:
    def device_run(code: int) -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "pipeline.cli", "device", "run", str(small), "-o", str(tmp_path / "results")]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        done = subprocess.run([bare_python, "-s", *arguments], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    assert "neither TensorRT nor ONNX Runtime is here" in device_run(1).stderr
    assert not (tmp_path / "results").exists()
    _install(bare_python.parents[1], "onnxruntime")
    said = device_run(0).stdout
    assert "No engines were built: " in said
    found = document(tmp_path / "results")
    assert found["engines"] == []
    assert any("No engines were built: " in note for note in found["notes"])
    assert len(found["profiles"]) == 2
    assert "No engines were built: " in (tmp_path / "results" / "device.html").read_text()
    assert not {"torch", "onnx", "tensorrt-rtx"} & set(found["environment"]["packages"])
    heavy = ("torch", "torchvision", "timm", "onnx", "matplotlib")
    code = f"import importlib.util as u; print([name for name in {heavy} if u.find_spec(name)])"
    assert subprocess.run([bare_python, "-s", "-c", code], capture_output=True, text=True).stdout == "[]\n"
