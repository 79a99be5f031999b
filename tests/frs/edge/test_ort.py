from __future__ import annotations

import builtins
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from frs.edge.metadata import GraphMetadata
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.sessions import open_session
from frs.errors import ExportError, RuntimeMissing
from frs.export.onnx import export_onnx
from tests.frs.export.lab import busy_detector, pictures

IMAGES = pictures(2, 64, 96)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ort") / "x.onnx"
    export_onnx(busy_detector(IMAGES, boxes=20), path, height=64, width=96, batch=2)
    return path


def rewritten(exported: Path, to: Path, **properties: str | None) -> Path:
    """The file with other metadata; None removes a key."""
    model = onnx.load(exported)
    kept = {entry.key: entry.value for entry in model.metadata_props} | properties
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: value for key, value in kept.items() if value is not None})
    onnx.save(model, to)
    return to


def test_padding_is_cut_off(exported: Path) -> None:
    session = OnnxRuntimeSession(exported, threads=1)
    boxes, scores, labels, counts = session.run_raw(IMAGES)
    for i, found in enumerate(session.predict(IMAGES)):
        assert len(found) == counts[i] >= 20
        assert (found.scores > 0.05).all()
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [96, 64, 96, 64]).all()
        assert not scores[i, counts[i] :].any()
        assert not boxes[i, counts[i] :].any()
        assert not labels[i, counts[i] :].any()
    assert session.info.classes == ("cat", "dög", "bird")
    assert session.provider == "CPUExecutionProvider"
    assert session.batch == 2


def test_a_split_run_answers_the_same_and_copies_nothing(exported: Path) -> None:
    with OnnxRuntimeSession(exported, threads=1) as session:
        outputs, split = session.run_split(IMAGES)
        for output, expected in zip(outputs, session.run_raw(IMAGES), strict=True):
            np.testing.assert_array_equal(output, expected)
    assert (split.copy_in, split.copy_out, split.gpu) == (None, None, None)
    assert split.infer > 0


def test_a_closed_session_gives_its_model_back(exported: Path) -> None:
    session = OnnxRuntimeSession(exported)
    model = weakref.ref(session.session)
    with session:
        assert model() is not None
    assert model() is None


def test_the_suffix_says_which_runtime_opens_a_file(exported: Path, tmp_path: Path) -> None:
    session = open_session(exported, threads=1)
    assert isinstance(session, OnnxRuntimeSession)
    assert (session.path, session.batch, session.metadata.precision) == (exported, 2, "fp32")
    with pytest.raises(ExportError, match=r"student\.pt: the runtime of a file is known by its suffix"):
        open_session(tmp_path / "student.pt")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES.astype(np.float32), r"takes uint8 of shape \(2, 3, 64, 96\), got float32 of shape \(2, 3, 64, 96\)"),
        (IMAGES[:1], r"got uint8 of shape \(1, 3, 64, 96\)"),
        (IMAGES.transpose(0, 2, 3, 1), r"got uint8 of shape \(2, 64, 96, 3\)"),
        (IMAGES[0], r"got uint8 of shape \(3, 64, 96\)"),
    ],
    ids=["type", "batch", "channels last", "no batch"],
)
def test_other_images_are_refused_by_name(exported: Path, images: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        OnnxRuntimeSession(exported).predict(images)


def test_a_provider_that_is_not_there_is_not_replaced_in_silence(exported: Path) -> None:
    with pytest.raises(RuntimeMissing, match="CUDAExecutionProvider"):
        OnnxRuntimeSession(exported, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))


def test_without_onnx_runtime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name.startswith("onnxruntime"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RuntimeMissing, match="pip install onnxruntime"):
        OnnxRuntimeSession(exported)


def test_files_that_are_not_ours(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.onnx: there is no such file"):
        OnnxRuntimeSession(tmp_path / "absent.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("no model at all, only words\n")
    with pytest.raises(ExportError, match=r"text\.onnx: ONNX Runtime cannot open it as an ONNX file"):
        OnnxRuntimeSession(text)
    with pytest.raises(ExportError, match="did not export it"):
        OnnxRuntimeSession(rewritten(exported, tmp_path / "other.onnx", producer='"another"'))


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"rounds": None, "padding": None}, "lacks padding, rounds"),
        ({"format": "2"}, "metadata format 2, this version reads 1"),
        ({"height": '"64"'}, "metadata height is '\"64\"', expected int"),
        ({"classes": "cat"}, "metadata classes is 'cat', expected tuple"),
        ({"category_ids": "[3, 17]"}, "3 class names and 2 category ids"),
    ],
)
def test_metadata_that_cannot_be_used(exported: Path, tmp_path: Path, properties: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        OnnxRuntimeSession(rewritten(exported, tmp_path / "x.onnx", **properties))


def test_metadata_round_trip() -> None:
    metadata = GraphMetadata(("a", "ü"), (1, 90), 64, 96, 114, 300, 16, 100, 0.05, 0.5, "fp32", "0.1.0")
    assert GraphMetadata.from_properties(metadata.to_properties(), Path("x")) == metadata


def test_the_edge_needs_neither_torch_nor_onnx(exported: Path) -> None:
    """A Jetson has no torch: the session opens and answers where importing torch or onnx would fail."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "import frs.edge.latency, frs.edge.machine\n"
        "from frs.edge.ort import OnnxRuntimeSession\n"
        "session = OnnxRuntimeSession(Path(sys.argv[1]))\n"
        "print(len(session.predict(np.zeros((2, 3, 64, 96), np.uint8))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
