"""Builds by the real TensorRT-RTX; about 30 s on one core, most of it two exports."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from frs.edge.image import PADDING
from frs.edge.machine import find_gpu
from frs.edge.sidecar import Sidecar
from frs.edge.trt import TensorRTSession
from frs.errors import EngineError
from frs.export import _try_engine, engine, limited
from frs.export.engine import build_engine
from frs.export.onnx import export_onnx, read_metadata
from frs.export.quantize import calibrate, quantize
from tests.frs.edge.stand_in import Behaviour, Cuda, install
from tests.frs.edge.test_sidecar import GOOD
from tests.frs.edge.trt_lab import plan_of
from tests.frs.export.lab import busy_detector, pictures


def has_rtx() -> bool:
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError):
        return False
    return find_gpu() is None  # with a GPU, TensorRT may be what builds


rtx = pytest.mark.skipif(not has_rtx(), reason="tensorrt_rtx alone, without a GPU, is what these builds are about")

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every precision that TensorRT gets: of a fixed batch from fp32 on, of an open one from fp16 on."""
    folder = tmp_path_factory.mktemp("exported")
    images = pictures(2, HEIGHT, WIDTH)
    detector = busy_detector(images, boxes=1, head_norm="group")
    for precision, batch in (("fp32", 1), ("fp16", None)):
        path = folder / f"{precision}.onnx"
        export_onnx(detector, path, height=HEIGHT, width=WIDTH, batch=batch, precision=precision)
    for source, batches, precision in (("fp32", [images[:1], images[1:]], "int8"), ("fp16", [images], "int8+fp16")):
        path = folder / f"{source}.onnx"
        quantize(path, folder / f"{precision}.onnx", calibrate(path, batches), precision=precision)
    return folder


@rtx
@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16", "int8+fp16"])
def test_every_precision_builds(precision: str, exported: Path, tmp_path: Path) -> None:
    path, plan = exported / f"{precision}.onnx", tmp_path / "x.plan"
    properties = read_metadata(path).to_properties()
    report = build_engine(path, plan, properties=properties, batches=(1, 2, 4), timings=tmp_path / "timings")
    assert (report.builder, report.target, report.proven, report.message) == ("tensorrt_rtx", "sm_86", "planned", None)
    sidecar = Sidecar.of(plan)
    assert sidecar.onnx_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar.plan_sha256 == report.plan_sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert sidecar.bytes == plan.stat().st_size
    assert report.size_mb == pytest.approx(plan.stat().st_size / 1e6, abs=1e-3)
    assert (sidecar.gpu, sidecar.driver) == (None, None)
    assert sidecar.properties == properties
    open_batch = {"images": [[batch, 3, HEIGHT, WIDTH] for batch in (1, 2, 4)]}
    assert sidecar.profile == (open_batch if "fp16" in precision else None)
    # No timing cache: TensorRT-RTX has none that does anything.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.plan", "x.plan.json"]


@rtx
@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("NonMaxSuppression", "the graph was not built: .*has no runners that implement it"),
        ("NonZero", "the parser refused the graph: .*NonZero"),
    ],
)
def test_what_is_refused_is_told_in_nvidias_words(node: str, words: str, tmp_path: Path) -> None:
    path, plan = tmp_path / "x.onnx", tmp_path / "x.plan"
    onnx.save(non_maximum_suppression() if node == "NonMaxSuppression" else non_zero(), path)
    plan.write_bytes(b"of an earlier build")
    report = build_engine(path, plan, properties={})
    assert (report.proven, report.builder, report.size_mb) == ("failed", "tensorrt_rtx", None)
    assert report.message is not None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(report.message)
    sidecar = Sidecar.of(plan)
    assert (sidecar.proven, sidecar.message, sidecar.plan_sha256) == ("failed", report.message, None)
    assert 0 < len(sidecar.log) <= limited.KEPT_LINES
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x.plan.json"]


@rtx
def test_a_plan_that_does_not_run_is_no_more_than_it_was(exported: Path, tmp_path: Path) -> None:
    path, plan = exported / "fp32.onnx", tmp_path / "x.plan"
    build_engine(path, plan, properties=read_metadata(path).to_properties())
    taken = replace(Sidecar.of(plan), proven="deserialised")
    told = engine.execute(taken, plan, 60)
    assert told.proven == "deserialised"
    assert told.message is not None
    assert told.message.startswith(f"it did not run: {plan}: it was built for sm_86, and no GPU is found here")


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1), ("fp16", 2)])
def test_a_plan_is_run_on_grey_images_of_the_least_batch(
    precision: str, least: int, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in for a GPU, whose answers are ONNX Runtime's."""
    cuda = Cuda()
    install(monkeypatch, "10.3", cuda, Behaviour(profile=(least, 2, 4)))
    plan = plan_of(exported / f"{precision}.onnx", tmp_path)
    ran: list[Any] = []
    run = TensorRTSession.run_raw

    def seen(session: TensorRTSession, images: Any) -> Any:
        ran.append(images)
        return run(session, images)

    monkeypatch.setattr(TensorRTSession, "run_raw", seen)
    _try_engine.main(plan)
    assert [(each.shape, each.dtype, np.unique(each).tolist()) for each in ran] == [
        ((least, 3, HEIGHT, WIDTH), np.uint8, [PADDING])
    ]
    assert cuda.live == 0


def test_what_has_run_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.plan").touch()
    monkeypatch.setattr(engine, "run_module", lambda *_, **__: limited.Ended(0, []))
    told = engine.execute(replace(GOOD, proven="deserialised"), tmp_path / "x.plan", 60)
    assert (told.proven, told.message) == ("executed", None)
    assert Sidecar.of(tmp_path / "x.plan").proven == "deserialised", "what the session reads is from before"
    monkeypatch.setattr(engine, "run_module", lambda *_, **__: limited.Ended(None, []))
    told = engine.execute(replace(GOOD, proven="deserialised"), tmp_path / "x.plan", 60)
    assert (told.proven, told.message) == ("deserialised", "it did not run: not within 60 s")


@rtx
def test_a_jetson_is_not_built_for_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "nms.onnx"
    onnx.save(non_maximum_suppression(), path)
    report = build_engine(path, tmp_path / "x.plan", properties={}, target="sm_87")
    assert report.proven == "failed"
    assert report.message is not None
    assert "cannot build for sm_87, it knows sm_" in report.message


def test_there_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx: there is no such file"):
        build_engine(tmp_path / "absent.onnx", tmp_path / "x.plan", properties={})


@pytest.mark.parametrize("batches", [(0, 1, 8), (2, 1, 8), (1, 9, 8)])
def test_batches_must_be_in_order(batches: tuple[int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.touch()
    with pytest.raises(EngineError, match=r"batches \[.*\]: give the least, the usual and the greatest"):
        build_engine(path, tmp_path / "x.plan", properties={}, batches=batches)


def non_maximum_suppression() -> Any:
    """A valid graph around the one operator that NVIDIA's compiler does not build."""
    constants = {"most": np.array([10]), "iou": np.array([0.5], np.float32), "score": np.array([0.1], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", *constants], ["selected"])],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 50, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 50]),
        ],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, ["n", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def non_zero() -> Any:
    """A valid graph around an operator that NVIDIA's parser does not take."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["scores"], ["found"])],
        "non_zero",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 50])],
        [helper.make_tensor_value_info("found", TensorProto.INT64, [2, "n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
