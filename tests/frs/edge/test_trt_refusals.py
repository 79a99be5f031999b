"""Plans, files and images that a session refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from frs.edge.sessions import open_session
from frs.edge.sidecar import sidecar_path
from frs.edge.trt import TensorRTSession
from frs.errors import EngineError, ExportError, RuntimeMissing
from stages.predict import run_predict
from tests.frs.edge.stand_in import Behaviour, Cuda, install
from tests.frs.edge.trt_lab import IMAGES, plan_of


def _has(module: str) -> bool:
    try:
        __import__(module)
    except (ImportError, OSError):
        return False
    return True


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"deserialises": False}, "cannot deserialise it"),
        ({"makes_context": False}, "cannot make room for running it"),
        ({"takes_address": False}, "cannot use a buffer for images"),
        ({"takes_shape": False}, "cannot take a batch of 2"),
        ({"executes": False}, "cannot run it"),
    ],
)
def test_what_tensorrt_refuses_is_told_in_its_own_words(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any], said: str
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour(**behaviour))

    def use() -> None:
        with TensorRTSession(plans["open"]) as session:
            session.run_raw(IMAGES[:2])

    with pytest.raises(EngineError, match=rf"open\.plan: TensorRT {said} \(no room at the inn\); build it here: "):
        use()
    assert cuda.live == 0


# --- what is not opened


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "10.13.0"}, "it was built by tensorrt 10.13.0, and tensorrt 10.3.0 would load it"),
        ({"target": "sm_110"}, r"it was built for sm_110, and the GPU here \(Orin\) is sm_87"),
        ({"plan_sha256": "a" * 64}, "the one or the other was replaced"),
        ({"builder": "os"}, "built by 'os', which is none of tensorrt, tensorrt_rtx"),
        ({"builder": None, "version": None}, "built by None"),
    ],
)
def test_a_plan_for_another_machine_is_refused_with_the_command_that_rebuilds(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], said: str,
) -> None:  # fmt: skip
    install(monkeypatch, "10.3", cuda, Behaviour())
    with pytest.raises(EngineError, match=rf"fixed\.plan: .*{said}.*; build it here: `frs-pipeline run CONFIG --force"):
        TensorRTSession(plan_of(exported["fixed"], tmp_path, **changes))
    assert cuda.calls == []  # nothing of it came near the device


def test_a_plan_whose_library_is_not_here(exported: dict[str, Path], tmp_path: Path) -> None:
    plan = plan_of(exported["fixed"], tmp_path, builder="tensorrt_rtx" if _has("tensorrt") else "tensorrt")
    if not _has("tensorrt_rtx") or not _has("tensorrt"):
        with pytest.raises(RuntimeMissing, match=r"built it and cannot be imported here .*--system-site-packages"):
            TensorRTSession(plan)


def test_files_that_are_missing_or_of_others(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    plan = plan_of(exported["fixed"], tmp_path)
    plan.unlink()
    with pytest.raises(EngineError, match=r"fixed\.plan: cannot be read \(No such file"):
        TensorRTSession(plan)
    sidecar_path(plan).unlink()
    with pytest.raises(EngineError, match=r"fixed\.plan\.json: cannot be read \(No such file"):
        TensorRTSession(plan)
    properties = {e.key: e.value for e in onnx.load(exported["fixed"]).metadata_props if e.key != "height"}
    plan = plan_of(exported["fixed"], tmp_path, properties=properties)
    with pytest.raises(ExportError, match=r"fixed\.plan: its metadata lacks height"):
        TensorRTSession(plan)


@pytest.mark.parametrize(("key", "value"), [("height", "96"), ("detections", "99")])
def test_a_plan_of_other_tensors_than_its_sidecar_promises(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    properties = {entry.key: entry.value for entry in onnx.load(exported["fixed"]).metadata_props} | {key: value}
    with pytest.raises(EngineError, match=r"fixed\.plan: its sidecar promises the tensors .*the plan has"):
        TensorRTSession(plan_of(exported["fixed"], tmp_path, properties=properties))


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[0], IMAGES[:, :, :32]])
def test_other_images_are_refused(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, images: Any
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with (
        TensorRTSession(plans["open"]) as session,
        pytest.raises(ExportError, match=r"takes uint8 of shape \('N', 3, 64, 96\)"),
    ):
        session.predict(images)


# --- through the command line


def test_predict_takes_a_plan(
    exported: dict[str, Path], plans: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    picture = tmp_path / "picture.png"
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(picture)

    def detected(artifact: Path, out: str) -> Any:
        (found,) = run_predict(artifact, [picture], tmp_path / out, 0.1)
        return found["detections"]

    of_plan = detected(plans["fixed"], "a")
    assert len(of_plan) >= 10
    assert of_plan == detected(exported["fixed"], "b")
    assert cuda.live == 0


def test_a_plan_is_known_by_its_suffix(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with open_session(plans["open"]) as session:
        assert isinstance(session, TensorRTSession)
