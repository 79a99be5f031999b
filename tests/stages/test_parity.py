"""The parity gate with its limits as they come: it must fail for a deliberate fault, and not without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from frs.detectors import Detector
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.predictor import Detections, ModelInfo
from frs.edge.trt import TensorRTSession
from frs.evaluation.parity import parity
from frs.export.layers import find_layers
from frs.export.onnx import export_onnx
from frs.export.quantize import calibrate, quantize
from frs.export.torch_predictor import TorchPredictor
from pipeline.deployment import GatesConfig
from pipeline.loading import load_config
from stages.artifacts import Deployed, OnnxFile, deployed
from stages.common import batch_of, write_json
from stages.parity import stage
from stages.report.disagreements import draw_disagreements
from stages.report.gates import judge
from tests.frs.export.lab import busy_detector, pictures
from tests.stages.conftest import SMALL

HEIGHT, WIDTH = 128, 192
CONTENT = 85
"""Rows of a letterboxed picture that are no padding: the lab's are 288 x 128."""
IMAGES = pictures(4, HEIGHT, WIDTH)
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return busy_detector(IMAGES)


@pytest.fixture(scope="module")
def files(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> file. Random weights damp nothing on its way, so of them only the pyramid and the classes are int8."""
    folder = tmp_path_factory.mktemp("files")
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(detector, fp32, height=HEIGHT, width=WIDTH, batch=None, precision="fp32")
    ranges = calibrate(fp32, [pictures(8, HEIGHT, WIDTH, seed=1)])
    layers = find_layers(onnx.load(fp32))
    keep = [layer.name for layer in layers if layer.group not in ("fpn", "class_tower", "class_output")]
    assert 0 < len(keep) < len(layers)
    quantize(fp32, int8, ranges, precision="int8", keep=keep)
    return {"fp32": fp32, "int8": int8}


class Faulty:
    """A session whose caller feeds it otherwise than torch is fed."""

    def __init__(self, path: Path, feed: Callable[[Pixels], Pixels], unfold: float = 1.0) -> None:
        """unfold: of the coordinates that come back, vertically."""
        self.session = OnnxRuntimeSession(path)
        self.info: ModelInfo = self.session.info
        self.feed, self.unfold = feed, np.array([1.0, unfold, 1.0, unfold], np.float32)

    def predict(self, images: Pixels) -> list[Detections]:
        found = self.session.predict(np.ascontiguousarray(self.feed(images)))
        return [Detections(each.boxes * self.unfold, each.scores, each.labels) for each in found]


def bgr(path: Path, _: Path) -> Faulty:
    return Faulty(path, lambda images: images[:, ::-1])


def stretched(path: Path, _: Path) -> Faulty:
    """As a caller would who knows of no letterbox, and brings the boxes back by the factor that it scaled by."""

    def stretch(images: Pixels) -> Pixels:
        resized = [
            np.asarray(Image.fromarray(image[:, :CONTENT].transpose(1, 2, 0)).resize((WIDTH, HEIGHT)))
            for image in images
        ]
        return np.stack(resized).transpose(0, 3, 1, 2)

    return Faulty(path, stretch, CONTENT / HEIGHT)


def wrong_mean(path: Path, scratch: Path) -> Faulty:
    """A file that subtracts the mean of pixels in 0..1 from pixels in 0..255."""
    model = onnx.load(path)
    (mean,) = (tensor for tensor in model.graph.initializer if "pixel_mean" in tensor.name)
    values = numpy_helper.to_array(mean)
    assert values.min() > 100
    mean.CopyFrom(numpy_helper.from_array(values / 255, mean.name))
    onnx.save(model, scratch / "wrong.onnx")
    return Faulty(scratch / "wrong.onnx", lambda images: images)


def failed(detector: Detector, precision: str, file: Any) -> set[str]:
    """The parity gates that were not passed, by their last name."""
    measured = parity(TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"), file, [IMAGES])
    rows = judge(GatesConfig(), {f"student_{precision}": vars(measured)}, {"accuracy": []}, ())
    assert len(rows) == 3
    return {row["name"].rpartition(".")[2] for row in rows if not row["passed"]}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_as_it_was_made_passes(detector: Detector, files: dict[str, Path], precision: str) -> None:
    assert failed(detector, precision, OnnxRuntimeSession(files[precision])) == set()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("fault", [wrong_mean, bgr, stretched])
def test_a_deliberate_fault_fails_every_limit(
    detector: Detector,
    files: dict[str, Path],
    tmp_path: Path,
    precision: str,
    fault: Callable[[Path, Path], Faulty],
) -> None:
    overlap = "iou_p5" if precision == "fp32" else "iou_p25"
    assert failed(detector, precision, fault(files[precision], tmp_path)) == {"unmatched", "score_p95", overlap}


def test_the_wrapper_alone_is_no_fault(detector: Detector, files: dict[str, Path]) -> None:
    assert failed(detector, "fp32", Faulty(files["fp32"], lambda images: images)) == set()


def test_engines_stand_beside_their_files_where_a_gpu_took_them() -> None:
    config = load_config(SMALL, ["quantize.precisions=[int8, int8-cpu]"])
    proven = {("teacher", "fp32"): "executed", ("student", "int8"): "deserialised", ("student", "fp16"): "planned"}
    rows = [{"model": model, "precision": precision, "proven": how} for (model, precision), how in proven.items()]
    labels = [each.label for each in deployed(config, rows)]
    assert labels == [
        "teacher_fp32", "teacher_fp16", "student_fp32", "student_fp16", "student_int8", "student_int8-cpu",
        "teacher_fp32.tensorrt", "student_int8.tensorrt",
    ]  # fmt: skip
    inputs = stage(config).inputs
    assert inputs["student_int8"] == "quantize/student_int8"
    assert inputs[Deployed(OnnxFile("student", "int8", "quantize"), "tensorrt").input] == "engine/student_int8"
    assert inputs["student_int8_sidecar"] == "engine/student_int8_sidecar"
    assert "student_int8-cpu_plan" not in inputs


class Plan(TensorRTSession):
    """An engine for batches of 2 to 4, nothing more of it."""

    batches = (2, 4)

    def __init__(self) -> None:
        self.batch = None


def test_the_batch_is_the_files_own_or_the_callers_if_it_can_be() -> None:
    fixed: Any = SimpleNamespace(batch=2)
    free: Any = SimpleNamespace(batch=None)
    assert (batch_of(fixed, 8), batch_of(free, 8)) == (2, 8)
    assert [batch_of(Plan(), wanted) for wanted in (1, 3, 8)] == [2, 3, 4]


HOSTILE = "up/<img src=x>\x1b[2J.png"


@pytest.fixture
def shown(tmp_path: Path) -> Any:
    """A context with one photograph of an ugly name, on which two artifacts disagree with torch."""
    (tmp_path / "images" / "up").mkdir(parents=True)
    Image.new("RGB", (40, 30), "black").save(tmp_path / "images" / HOSTILE, format="PNG")
    category = {"id": 7, "name": "a"}
    image = {"id": 5, "file_name": HOSTILE, "width": 40, "height": 30}
    write_json(tmp_path / "val.json", {"images": [image], "annotations": [], "categories": [category]})

    def found(x: float, score: float) -> dict[str, Any]:
        return {"image_id": 5, "category_id": 7, "bbox": [x, 5.0, 10.0, 10.0], "score": score}

    worst = {"image_id": 5, "torch": [found(2.0, 0.9), found(2.0, 0.8)], "file": [found(3.0, 0.7), found(25.0, 0.6)]}
    write_json(tmp_path / "worst.json", {"student_fp32": [worst], "student_int8": [worst]})
    return SimpleNamespace(
        config=load_config(SMALL, []),
        inputs={"val": tmp_path / "val.json", "images": tmp_path / "images", "worst": tmp_path / "worst.json"},
        outputs={"disagreements": tmp_path / "out" / "parity"},
    )


def gate(label: str, *, passed: bool) -> dict[str, Any]:
    return {"name": f"parity.{label}.unmatched", "limit": 0.1, "value": 0.2, "passed": passed, "measured_on": 9}


def test_an_artifact_that_failed_is_shown_with_both_sets_of_boxes(shown: Any) -> None:
    shown.outputs["disagreements"].parent.mkdir()
    drawn = draw_disagreements(shown, [gate("student_fp32", passed=True), gate("student_int8", passed=False)])
    assert list(drawn) == ["student_int8"]
    (picture,) = drawn["student_int8"]
    assert (picture.file, picture.image) == ("parity/student_int8-1.png", HOSTILE)
    assert [title for title, _ in picture.panels] == ["pairs: 1", "alone: 1 of torch, 1 of the file"]
    assert [path.name for path in shown.outputs["disagreements"].iterdir()] == ["student_int8-1.png"], (
        "the name is ours"
    )
    pairs, alone = (np.asarray(panel).reshape(-1, 3) for _, panel in picture.panels)
    for panel in (pairs, alone):
        assert {(86, 180, 233), (255, 94, 0)} <= set(map(tuple, panel.tolist()))


def test_where_all_gates_passed_nothing_is_drawn(shown: Any) -> None:
    assert draw_disagreements(shown, [gate("student_fp32", passed=True)]) == {}
    assert not shown.outputs["disagreements"].exists()
