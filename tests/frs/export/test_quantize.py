"""Calibration, what is kept, what is written, and each layer's noise: on graphs that can be worked out by hand."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from frs.errors import ExportError
from frs.export.calibration import observe
from frs.export.layers import find_layers
from frs.export.onnx import export_onnx, read_metadata
from frs.export.quantize import calibrate, quantize, quantized
from frs.export.sensitivity import sqnr
from tests.frs.export.lab import busy_detector, pictures
from tests.frs.export.small_graph import BIAS, SECOND, WEIGHT, two_layers

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 3, 2, 2), dtype=np.uint8)
X = IMAGES[:, 0].astype(np.float64) / 100
Y = np.einsum("oi,nihw->nohw", WEIGHT[..., 0, 0], X) + BIAS[:, None, None]
Z = np.maximum(Y, 0)


def conv(weight: npt.NDArray[Any], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    answer: npt.NDArray[np.float64] = np.einsum("oi,nihw->nohw", weight[..., 0, 0], values)
    return answer


def tensors(model: Any) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    onnx.save(two_layers(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A small fp32 file of a batch of one, and images for it."""
    images, target = pictures(3, 96, 128), tmp_path_factory.mktemp("retinanet") / "x.onnx"
    made = busy_detector(images, boxes=20, head_norm="group")
    export_onnx(made, target, height=96, width=128, candidates=100, rounds=2)
    return target, images[:, None]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_ranges_are_those_of_all_images(small: Path, threads: int) -> None:
    ranges = calibrate(small, IMAGES, threads=threads)
    for name, values in (("x", X), ("y", Y), ("z", Z), ("out", conv(SECOND, Z))):
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-6)
    assert set(ranges) == {"x", "y", "z", "out"}


def test_no_image_gives_no_range(small: Path) -> None:
    with pytest.raises(ExportError, match=r"from inf to -inf on the calibration images.*at least one image"):
        calibrate(small, [])


def test_weights_that_overflow_are_told(tmp_path: Path) -> None:
    model = two_layers(weight=WEIGHT * np.float32(3e38))
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(ExportError, match=r"no int8 scale can be made of them; .*look at the weights"):
        calibrate(tmp_path / "huge.onnx", IMAGES)


def test_one_channel_of_nan_is_told() -> None:
    """The second: ONNX Runtime's ReduceMin and ReduceMax do not see a NaN behind the first place."""
    weight = WEIGHT.copy()
    weight[1] = np.nan
    with pytest.raises(ExportError, match=r"the values of y reach from nan to nan .*look at the weights"):
        observe(two_layers(weight=weight), {"y"}, IMAGES, 1)


def test_the_scales_for_tensorrt_by_hand(small: Path) -> None:
    found = tensors(quantized(onnx.load(small), calibrate(small, IMAGES), precision="int8"))
    assert found["x_scale"] == pytest.approx(X.max() / 127, rel=1e-6)
    assert found["z_scale"] == pytest.approx(Z.max() / 127, rel=1e-6)
    np.testing.assert_allclose(found["detector.first.weight_scale"], [1.0 / 127, 0.03 / 127], rtol=1e-6)
    # 0.5 / 1 of 127 lies half-way between two steps, to the even one
    expected = [[127, -64, 32], [85, 42, -127]]
    assert found["detector.first.weight_quantized"].reshape(2, 3).tolist() == expected
    assert "y_scale" not in found
    assert "out_scale" not in found


def test_the_scales_for_cpus_by_hand(small: Path) -> None:
    model = quantized(onnx.load(small), calibrate(small, IMAGES), precision="int8-cpu")
    found, out = tensors(model), conv(SECOND, Z)
    assert found["x_scale"] == pytest.approx(X.max() / 255, rel=1e-6)
    assert (found["x_zero_point"], found["z_zero_point"]) == (0, 0)
    assert found["z_scale"] == pytest.approx(Z.max() / 255, rel=1e-6)  # the ReLU's output: it is in the range
    assert "Relu" not in {node.op_type for node in model.graph.node}
    low, high = min(out.min(), 0), max(out.max(), 0)
    assert found["out_scale"] == pytest.approx((high - low) / 255, rel=1e-6)
    assert found["out_zero_point"] == round(-low / (high - low) * 255)
    steps = X.max() / 255 * np.array([1.0, 0.03]) / 127
    assert found["detector.first.bias_quantized"].tolist() == np.round(BIAS / steps).tolist()


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_the_noise_by_hand(precision: str, tmp_path: Path) -> None:
    """Each layer quantised alone: its input is the floating-point one, and only its own rounding counts."""
    source = tmp_path / "x.onnx"
    onnx.save(two_layers(half=precision == "int8+fp16"), source)
    found = sqnr(source, calibrate(source, IMAGES), IMAGES, precision=precision, threads=2)

    def rounded(values: npt.NDArray[Any], extent: Any) -> npt.NDArray[np.float64]:
        step = np.asarray(extent, dtype=np.float64) / 127
        return np.round(values / step) * step

    first = (
        conv(rounded(WEIGHT, np.abs(WEIGHT).max((1, 2, 3), keepdims=True)), rounded(X, X.max())) + BIAS[:, None, None]
    )
    second = conv(rounded(SECOND, 2.0), rounded(Z, Z.max()))
    by_hand = {
        name: 10 * math.log10((right**2).sum() / ((right - noisy) ** 2).sum())
        for name, right, noisy in (("first", Y, first), ("second", conv(SECOND, Z), second))
    }
    assert found == pytest.approx(by_hand, abs=0.01 if precision == "int8" else 1.0)
    assert 30 < by_hand["first"] < 60


def test_the_noise_for_cpus_is_of_the_output_too(small: Path) -> None:
    ranges = calibrate(small, IMAGES)
    found = sqnr(small, ranges, IMAGES, precision="int8-cpu", threads=1)
    right = conv(SECOND, Z)
    step_z, low, high = Z.max() / 255, min(right.min(), 0), max(right.max(), 0)
    step_out, step_w = (high - low) / 255, 2.0 / 127
    noisy = conv(np.round(SECOND / step_w) * step_w, np.round(Z / step_z) * step_z)
    zero = round(-low / step_out)
    noisy = (np.clip(np.round(noisy / step_out) + zero, 0, 255) - zero) * step_out
    expected = 10 * math.log10((right**2).sum() / ((right - noisy) ** 2).sum())
    assert found["second"] == pytest.approx(expected, abs=0.3)  # a value between two steps may go to either


def test_a_layer_that_is_exact_has_no_noise(tmp_path: Path) -> None:
    model = two_layers()
    for tensor in model.graph.initializer:
        if tensor.name == "detector.second.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((1, 2, 1, 1), np.float32), tensor.name))
    onnx.save(model, tmp_path / "zero.onnx")
    found = sqnr(tmp_path / "zero.onnx", calibrate(tmp_path / "zero.onnx", IMAGES), IMAGES, precision="int8")
    assert found["second"] is None
    assert found["first"] is not None


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_what_is_kept_is_as_it_was(
    retinanet: tuple[Path, npt.NDArray[np.uint8]], precision: str, tmp_path: Path
) -> None:
    source, images = retinanet
    keep = {"class_tower.0", "backbone.body.conv1", "fpn.lateral.1"}
    quantize(source, tmp_path / "kept.onnx", calibrate(source, images), precision=precision, keep=keep)
    before, after = (
        {node.name: node for node in onnx.load(path).graph.node} for path in (source, tmp_path / "kept.onnx")
    )
    for layer in find_layers(onnx.load(source)):
        for name in layer.nodes:
            assert (after[name].input[1] == before[name].input[1]) == (layer.name in keep)
            if layer.name in keep and precision == "int8":  # a level of the pyramid is int8 for the other tower alone
                assert list(after[name].input) == list(before[name].input)


def test_with_everything_kept_the_graph_is_its_source(small: Path, tmp_path: Path) -> None:
    quantize(small, tmp_path / "all.onnx", calibrate(small, IMAGES), precision="int8", keep=["first", "second"])
    assert onnx.load(tmp_path / "all.onnx").graph == onnx.load(small).graph
    assert read_metadata(tmp_path / "all.onnx").precision == "int8"


def test_the_same_bytes_in_any_process_and_no_path(
    retinanet: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    source, images = retinanet
    script = (
        "import sys; from pathlib import Path; import numpy as np; from frs.export.quantize import calibrate, quantize\n"
        "source, images, folder = map(Path, sys.argv[1:])\n"
        "ranges = calibrate(source, np.load(images), threads=1)\n"
        "for precision in ('int8', 'int8-cpu'):\n"
        "    quantize(source, folder / f'{precision}.onnx', ranges, precision=precision)"
    )
    np.save(tmp_path / "images.npy", images)
    hashes = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, str(source), str(tmp_path / "images.npy"), str(tmp_path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        files = [(tmp_path / f"{precision}.onnx").read_bytes() for precision in ("int8", "int8-cpu")]
        assert not any(
            str(folder).encode() in data for data in files for folder in (tmp_path, source.parent, Path.cwd())
        )
        hashes.add(tuple(hashlib.sha256(data).hexdigest() for data in files))
    assert len(hashes) == 1


def test_the_smallest_weights_of_a_float16_graph_are_not_lost(tmp_path: Path) -> None:
    """A channel whose scale is no normal float16 number: its weights are all below 127 * 6.1e-5."""
    weight = WEIGHT * np.array([1.0, 0.1], np.float32).reshape(2, 1, 1, 1)
    onnx.save(two_layers(half=True, weight=weight), tmp_path / "half.onnx")
    ranges = calibrate(tmp_path / "half.onnx", IMAGES)
    found = tensors(quantized(onnx.load(tmp_path / "half.onnx"), ranges, precision="int8+fp16"))
    assert found["detector.first.weight_scale"].dtype == np.float16
    np.testing.assert_allclose(found["detector.first.weight_scale"].astype(float), [1 / 127, 0.003 / 127], rtol=3e-3)
    assert np.abs(found["detector.first.weight_quantized"].astype(int)).max((1, 2, 3)).tolist() == [127, 127]
