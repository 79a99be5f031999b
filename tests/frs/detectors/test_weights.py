from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from frs.data.trees import ARCHIVE, PHOTOGRAPHS, _read
from frs.detectors import build_detector, load_backbone_weights, load_detector, pretrained, save_detector
from frs.detectors.weights import read_state_dict
from frs.errors import WeightsError
from frs.packages import fetch
from stages.common import cache_folder
from tests.frs.detectors.test_retinanet import build, spec


def scrambled() -> Any:
    """A detector whose every parameter and buffer is random."""
    detector = build()
    generator = torch.Generator().manual_seed(4)
    for tensor in detector.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return detector.eval()


def test_a_detector_comes_back_as_it_was(tmp_path: Path) -> None:
    detector = scrambled()
    save_detector(tmp_path / "d.safetensors", detector)
    loaded = load_detector(tmp_path / "d.safetensors")
    assert loaded.spec == detector.spec
    assert not loaded.training
    theirs = loaded.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in detector.state_dict().items())
    save_detector(tmp_path / "again.safetensors", loaded)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def test_files_that_are_no_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(WeightsError, match="no such file"):
        load_detector(path)
    save_detector(path, scrambled())
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"PK\x03\x04 something else"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            load_detector(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="not one of a detector"):
        load_detector(path)


def described(**changes: Any) -> str:
    return json.dumps({**json.loads(spec().to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", "no json", "[" * 100_000, '{"family": "yolo"}', '{"family": "retinanet", "classes": []}',
        described(levels=10**9), described(fpn_channels=10**9), described(levels="5"), described(head_depth=True),
        described(ratios=[[1]]), described(ratios=["1"]), described(classes="abc"), described(classes=[1, 2, 3]),
        described(anchor_scale=None), described(backbone=5), described(backbone_options=[1]), described(head_norm="batch"),
        described(backbone="hf-hub:timm/resnet18"), described(backbone="local-dir:/tmp"), described(strange=1),
        described(backbone_options={"checkpoint_path": "evil.pth"}), described(backbone_options={"channels": "x"}),
        described(backbone_options={"stem_width": 0}), described(pixel_mean=[0, 0, "x"]),
    ],
    ids=lambda text: text[-40:],
)  # fmt: skip
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"frs.detector": text})
    with pytest.raises(WeightsError, match=r"d\.safetensors"):
        load_detector(path)


def test_tensors_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
    detector = scrambled()
    tensors = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    del tensors["fpn.lateral.0.weight"]
    tensors["class_output.bias"] = torch.zeros(5)
    tensors["teacher.extra"] = torch.zeros(1)
    path = tmp_path / "d.safetensors"
    save_file(tensors, path, metadata={"frs.detector": detector.spec.to_json()})
    with pytest.raises(WeightsError) as caught:
        load_detector(path)
    assert "1 missing (fpn.lateral.0.weight)" in str(caught.value)
    assert "1 unexpected (teacher.extra)" in str(caught.value)
    assert "1 of another shape (class_output.bias (5,) for (27,))" in str(caught.value)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    detector = scrambled()
    detector.class_output.bias.data[0] = float("nan")
    save_detector(tmp_path / "d.safetensors", detector)
    with pytest.raises(WeightsError, match=r"1 tensor holds NaN or infinity \(first: class_output\.bias\)"):
        load_detector(tmp_path / "d.safetensors")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was run"),)

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        read_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"channels": [8, 16, 24, 32], "stem_width": 8}),
        ("convnext_atto", {}),
        ("mobilenetv3_small_050", {}),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_backbone_from_timms_own_state_dict(tmp_path: Path, name: str, options: dict[str, Any], suffix: str) -> None:
    torch.manual_seed(3)
    model = timm.create_model(name, **options)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    detector = build(backbone=name, backbone_options=options).eval()
    report = load_backbone_weights(detector, path, cache_dir=tmp_path)
    assert report.tensors == len(detector.backbone.state_dict())
    assert report.tensors + report.unused == len(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    expected = model.eval().forward_intermediates(images, intermediates_only=True)
    for level in detector.backbone(images):
        assert (
            any(e.shape == level.shape and torch.allclose(e, level, atol=1e-5) for e in expected) or name != "resnet18"
        )


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"are not of timm's resnet18|another network"):
        load_backbone_weights(build(), tmp_path / "w.pth", cache_dir=tmp_path)


def test_the_package_goes_home_to_the_tf_model_and_nowhere_else(tmp_path: Path) -> None:
    for backbone in ("efficientnet_lite0", "tf_efficientnet_lite1"):
        detector = build(backbone=backbone, backbone_options={})
        with pytest.raises(WeightsError, match="tf_efficientnet_lite0"):
            load_backbone_weights(detector, "package:efficientnet-lite0", cache_dir=tmp_path)
    with pytest.raises(WeightsError, match="there is no such package"):
        load_backbone_weights(build(), "package:resnet18", cache_dir=tmp_path)


def test_the_packages_weights_give_timms_features_on_a_photograph() -> None:
    detector = build(backbone="tf_efficientnet_lite0", backbone_options={})
    load_backbone_weights(detector, "package:efficientnet-lite0", cache_dir=cache_folder())
    photograph, _ = _read(fetch(ARCHIVE, cache_folder()), PHOTOGRAPHS[1])
    tile = torch.from_numpy(photograph[:224, :224].astype(np.float32)).permute(2, 0, 1)[None]
    ours = detector.eval().backbone(detector.normalize(tile))
    state, _ = pretrained._from_package(detector.backbone, "efficientnet-lite0", cache_folder())
    home = timm.create_model("tf_efficientnet_lite0")
    home.load_state_dict(state)
    expected = home.eval().forward_intermediates((tile - 127.5) / 127.5, indices=[2, 3, 4], intermediates_only=True)
    for level, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(level, wanted, atol=1e-4, rtol=1e-4)
    # TensorFlow pads a stride-2 convolution at the bottom and right only: the stem, computed by hand.
    stem = torch.nn.functional.conv2d(pad((tile - 127.5) / 127.5, (0, 1, 0, 1)), state["conv_stem.weight"], stride=2)
    torch.testing.assert_close(home.conv_stem((tile - 127.5) / 127.5), stem, atol=1e-5, rtol=1e-5)


def test_a_spec_with_fewer_classes_still_names_its_own(tmp_path: Path) -> None:
    detector = build_detector(replace(spec(), classes=("tree",), category_ids=(4,)))
    save_detector(tmp_path / "d.safetensors", detector)
    assert load_detector(tmp_path / "d.safetensors").spec.category_ids == (4,)
