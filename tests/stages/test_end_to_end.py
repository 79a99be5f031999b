from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open

from frs.edge.sidecar import Sidecar
from frs.export.onnx import read_metadata
from stages.artifacts import OnnxFile
from tests.stages.conftest import SMALL, frs_pipeline
from tests.stages.device.lab import stub
from tests.stages.device.sshd import ALIAS, missing, running
from tests.stages.report.browser import CHROMIUM, visit

FILES = [
    "teacher_fp32", "teacher_fp16", "student_fp32", "student_fp16", "student_int8", "student_int8+fp16", "student_int8-cpu",
]  # fmt: skip


@pytest.fixture(scope="session")
def report(finished: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((finished / "report.json").read_text())
    return loaded


def entry(finished: Path, stage: str) -> Path:
    """The store's outputs of a stage of the run."""
    manifest = json.loads((finished / "manifest.json").read_text())
    return Path(finished.parent / manifest["stages"][stage]["path"] / "outputs")


def test_what_a_person_takes_away_lies_in_the_run_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    for model in ("teacher", "student"):
        assert {
            f"{model}{suffix}" for suffix in (".onnx", ".fp16.onnx", ".plan", ".fp16.plan", ".safetensors")
        } <= names
    assert {f"{model}.metrics.jsonl" for model in ("teacher", "control", "student")} <= names
    assert {
        *(f"student.{kind}.onnx" for kind in ("int8", "int8-fp16", "int8-cpu")),
        *(f"student.{kind}.plan" for kind in ("int8", "int8-fp16")),
        "sensitivity.json",
        "report.json",
        "report.md",
        "report.html",
        "pictures",
        "predictions",
        "manifest.json",
        "config.yaml",
    } <= names
    assert "parity" not in names, "no gate failed"


def test_the_terminal_ends_with_table_verdict_and_report(workplace: Path) -> None:
    text = (workplace / "stdout.txt").read_text()
    for words in ("teacher", "control", "student", "params", "AP50", "p99 ms", "memory MB", "file MB"):
        assert words in text
    assert "istillation" in text
    assert "runs/small/report.html" in text


def test_report_json_keeps_its_schema(report: dict[str, Any]) -> None:
    assert report["schema"] == 1
    assert set(report) == {
        "schema", "name", "created", "seed", "command", "commit", "config", "environment", "data", "classes", "models",
        "distillation", "training", "files", "accuracy", "parity", "quantization", "profiles", "engines", "gates",
    }  # fmt: skip
    assert set(report["models"]) == {"teacher", "control", "student"}
    assert report["models"]["control"] == report["models"]["student"]
    assert report["models"]["teacher"]["params"] > report["models"]["student"]["params"]
    assert report["distillation"]["verdict"] in {"helped", "hurt", "cannot tell"}
    assert report["distillation"]["alpha"] > 0
    assert report["distillation"]["beta"] > 0
    low, high = report["distillation"]["gain_interval"]
    assert low <= report["distillation"]["gain_AP"] <= high
    keys = {"model", "runtime", "precision", "decode", "input", "images", "AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert all(keys | {"per_class"} == set(row) for row in report["accuracy"])
    assert len(report["accuracy"]) == 3 * 3 + len(FILES)
    letterbox = {"resize": "letterbox", "height": 128, "width": 128}
    edge = {"resize": "shortest_edge", "height": 128, "width": 1333}
    assert [row["input"] for row in report["accuracy"]] == [letterbox, edge, letterbox] * 3 + [letterbox] * len(FILES)
    profile_keys = {
        "model", "runtime", "precision", "device", "provider", "threads", "batch", "latency_ms", "stages_ms", "gpu_ms",
        "throughput_ips", "cold_start_ms", "peak_memory_mb", "device_memory_mb", "artifact_mb", "energy_mj", "energy_rail",
        "power_idle_w", "power_mode", "clocks", "temperature_c", "throttled", "other_load", "warnings", "missing",
    }  # fmt: skip
    assert all(profile_keys == set(row) for row in report["profiles"])
    assert [f"{p['model']}_{p['precision']}" for p in report["profiles"]] == FILES
    scored = [row for row in report["accuracy"] if row["runtime"] == "onnxruntime"]
    assert [f"{row['model']}_{row['precision']}" for row in scored] == list(report["parity"]) == FILES
    assert list(report["quantization"]) == FILES[4:]


def test_every_null_of_a_profile_has_its_reason(report: dict[str, Any]) -> None:
    for profile in report["profiles"]:
        unknown = {key for key, value in profile.items() if value is None}
        unknown |= {f"stages_ms.{key}" for key, value in profile["stages_ms"].items() if value is None}
        assert unknown == set(profile["missing"])
        assert all(profile["missing"].values())


def test_latency_figures_are_in_order(report: dict[str, Any]) -> None:
    for profile in report["profiles"]:
        latency = profile["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["p50_interval"][0] <= latency["p50"] <= latency["p50_interval"][1]
        assert latency["runs"] >= 20


def test_the_reported_ap_is_what_pycocotools_says_of_the_predictions(finished: Path, report: dict[str, Any]) -> None:
    truth = COCO(str(entry(finished, "data") / "val.json"))
    for row in report["accuracy"]:
        stem = "-".join(row[key] for key in ("model", "runtime", "precision", "decode"))
        stem += "-shortest_edge" if row["input"]["resize"] == "shortest_edge" else ""
        found = json.loads((finished / "predictions" / f"{stem}.json").read_text())
        scorer = COCOeval(truth, truth.loadRes(found), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        assert row["AP"] == pytest.approx(100 * scorer.stats[0])
        assert row["AP50"] == pytest.approx(100 * scorer.stats[1])


def test_every_file_was_held_against_torch_with_enough_boxes(report: dict[str, Any]) -> None:
    gates = {gate["name"]: gate for gate in report["gates"]}
    for label in FILES:
        int8 = "int8" in label
        for key in ("unmatched", "score_p95", "iou_p25" if int8 else "iou_p5"):
            gate = gates.pop(f"parity.{label}.{key}")
            assert gate["passed"]
            assert gate["measured_on"] >= 50
            assert gate["value"] >= gate["limit"] if key.startswith("iou") else gate["value"] <= gate["limit"]
        assert gates.pop(f"ap_drop.{label}")["passed"]
        if int8:
            held_out = gates.pop(f"int8_drop.{label}")
            assert (held_out["passed"], held_out["measured_on"]) == (True, 4)
    assert gates == {}


def test_int8_is_another_arithmetic_and_float16_a_nearer_one(report: dict[str, Any]) -> None:
    found = {label: report["parity"][f"student_{label}"]["iou_p5"] for label in ("fp32", "fp16", "int8")}
    assert found["int8"] < found["fp16"] < found["fp32"]
    assert report["parity"]["student_int8"]["worst"]
    for made in report["quantization"].values():
        assert made["layers"] == sum(group["layers"] for group in made["sensitivity"]["groups"])
        assert len(made["kept"]) == sum(group["kept"] for group in made["sensitivity"]["groups"])


def test_engines_are_planned_and_say_what_built_them(finished: Path, report: dict[str, Any]) -> None:
    assert [(engine["model"], engine["precision"]) for engine in report["engines"]] == [
        ("teacher", "fp32"), ("teacher", "fp16"),
        ("student", "fp32"), ("student", "fp16"), ("student", "int8"), ("student", "int8+fp16"),
    ]  # fmt: skip
    for engine in report["engines"]:
        assert engine["proven"] == "planned", engine["message"]
        assert engine["builder"] == "tensorrt_rtx"
        assert engine["target"] == "sm_86"
    for name in ("student", "student.int8-fp16"):
        sidecar = Sidecar.of(finished / f"{name}.plan")
        onnx_file = finished / f"{name}.onnx"
        assert sidecar.onnx_sha256 == hashlib.sha256(onnx_file.read_bytes()).hexdigest()
        assert sidecar.properties == read_metadata(onnx_file).to_properties()


def test_class_names_and_category_ids_travel_in_the_file(finished: Path) -> None:
    session = onnxruntime.InferenceSession(finished / "student.onnx", providers=["CPUExecutionProvider"])
    text = json.dumps(session.get_modelmeta().custom_metadata_map)
    assert "Tree" in text
    assert [i.shape for i in session.get_inputs()] == [[1, 3, 128, 128]]


def test_student_and_control_start_alike_and_end_apart(finished: Path) -> None:
    with (
        safe_open(finished / "student.safetensors", "pt") as student,
        safe_open(finished / "control.safetensors", "pt") as control,
    ):
        assert set(student.keys()) == set(control.keys()), "adapters must not be shipped"
        assert any(not student.get_tensor(key).equal(control.get_tensor(key)) for key in student.keys())  # noqa: SIM118
    first = [
        json.loads((entry(finished, model) / "history.json").read_text())[0]["terms"]
        for model in ("student", "control")
    ]
    assert math.isclose(first[0]["classification"], first[1]["classification"], rel_tol=0.2)


def test_the_report_shows_its_pictures(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    for number in (1, 2, 3):
        assert f"pictures/{number}.png" in text
        picture = Image.open(finished / "pictures" / f"{number}.png")
        assert picture.width > 3 * picture.height, "four panels in a row"
    written = {f"pictures/{path.name}" for path in (finished / "pictures").iterdir()}
    assert written == set(re.findall(r"\]\((pictures/[^)]*)\)", text)), "each is shown, none is left over"


def test_the_report_says_how_it_was_made(finished: Path, report: dict[str, Any]) -> None:
    assert report["command"].startswith("frs-pipeline run ")
    assert report["command"].endswith("small.yaml --runs-dir runs")
    assert report["config"] == yaml.safe_load((finished / "config.yaml").read_text())
    assert len(report["data"]["val"]["sha256"]) == 64
    assert [len(report["training"][model]) for model in ("teacher", "control", "student")] == [2, 2, 2]


def test_every_file_is_listed_with_the_hash_that_it_has(finished: Path, report: dict[str, Any]) -> None:
    named = {each["file"]: each["sha256"] for each in report["files"]}
    assert len(named) == 3 + len(FILES)
    for engine in report["engines"]:
        named[OnnxFile(engine["model"], engine["precision"], "").plan] = engine["plan_sha256"]
    for name, sha256 in named.items():
        assert hashlib.sha256((finished / name).read_bytes()).hexdigest() == sha256


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_the_page_opens_in_a_browser_in_silence(finished: Path, tmp_path: Path) -> None:
    seen = visit(finished / "report.html", tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    assert "against the control" in seen.dom


def test_a_second_run_does_no_work(workplace: Path, finished: Path) -> None:
    before = (finished / "student.onnx").stat().st_mtime_ns
    done = frs_pipeline("run", SMALL, cwd=workplace)
    assert done.stdout.count("reused") == 12
    assert "nothing to do" in done.stdout
    assert (finished / "student.onnx").stat().st_mtime_ns == before


def test_an_export_option_reruns_from_the_export_on(workplace: Path) -> None:
    done = frs_pipeline("plan", SMALL, "--set", "export.rounds=8", cwd=workplace)
    actions = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line}
    kept = {"data", "preflight", "teacher", "control", "student"}
    assert {name for name, action in actions.items() if action == "reuse"} == kept
    assert actions["export"] == "run"
    assert "config export.rounds: 16 -> 8" in done.stdout


def test_changed_gates_rerun_the_report_alone_and_fail_the_run(workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    limits = ("--set", "gates.min_gain=99", "--set", "gates.int8_unmatched=0.001")
    done = frs_pipeline("run", SMALL, *limits, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert done.stdout.count("reused") == 11
    assert "gain" in done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "runs" / "small"
    worst = json.loads((run / "report.json").read_text())["parity"]["student_int8"]["worst"]
    assert len(worst) == 3
    assert all(name in done.stderr for name in worst)
    text = (run / "report.md").read_text()
    drawn = {f"parity/{path.name}" for path in (run / "parity").iterdir()}
    assert drawn == {f"parity/{label}-{number}.png" for label in FILES[4:] for number in (1, 2, 3)}
    assert drawn <= set(re.findall(r"\]\((parity/[^)]*)\)", text))


def test_report_prints_a_finished_run(workplace: Path) -> None:
    assert "student" in frs_pipeline("report", "small", cwd=workplace).stdout


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_device_is_measured_over_ssh_and_shown_beside_this_machine(workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "runs", tmp_path / "runs")
    with running() as far, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{far.bin}:{os.environ['PATH']}")
        # What the far end measures is made up here; tests/stages/device has it measure.
        arguments = ("device", "push", "small", "--host", ALIAS, "--command", stub(far))
        done = frs_pipeline(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "board: 1 gate failed on it: gain; its results are whole." in done.stderr
    folder = tmp_path / "runs" / "small"
    assert {path.name for path in (folder / "devices" / ALIAS).iterdir()} == {"device.json", "device.html"}
    shown = frs_pipeline("report", "small", cwd=tmp_path).stdout
    assert re.search(r"this machine +┃ +board", shown)
    assert shown.splitlines()[-1] == "Devices: runs/small/devices.html"


def test_predict_draws_and_prints(workplace: Path, finished: Path) -> None:
    photograph = next((entry(finished, "data") / "images" / "val").iterdir())
    done = frs_pipeline("predict", finished / "student.onnx", photograph, "--score", "0.01", cwd=workplace)
    answer = json.loads(done.stdout)[0]
    assert Image.open(workplace / answer["drawn"]).size == Image.open(photograph).size
    assert answer["detections"]
    for found in answer["detections"]:
        assert found["class"] == "Tree"
        x, y, w, h = found["bbox"]
        assert min(x, y, w, h) >= 0
        assert x + w <= 160
        assert y + h <= 160


def test_predict_takes_a_folder(workplace: Path, finished: Path, tmp_path: Path) -> None:
    folder = entry(finished, "data") / "images" / "val"
    done = frs_pipeline("predict", finished / "student.onnx", folder, "--out", tmp_path / "drawn", cwd=workplace)
    names = sorted(path.name for path in folder.iterdir())
    assert [Path(answer["image"]).name for answer in json.loads(done.stdout)] == names
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == names
    (tmp_path / "empty").mkdir()
    refused = frs_pipeline("predict", finished / "student.onnx", tmp_path / "empty", cwd=workplace, check=False)
    assert refused.returncode == 1
    assert f"{tmp_path / 'empty'}: there is no image in this folder (.bmp, .jpeg," in refused.stderr


def test_gc_keeps_what_the_run_names(workplace: Path, finished: Path) -> None:
    frs_pipeline("gc", cwd=workplace)
    assert "nothing to do" in frs_pipeline("run", SMALL, cwd=workplace).stdout


def test_check_runs_nothing_and_finds_this_configuration_fine(tmp_path: Path) -> None:
    done = frs_pipeline("check", SMALL, cwd=tmp_path)
    assert "FAULT" not in done.stdout
    assert not (tmp_path / "runs").exists()
