"""What an mmdetection checkpoint says besides its tensors, and the files that are refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frs.detectors import FCOS, GFL, Detector, RetinaNet, from_mmdet
from frs.detectors.published.config_text import look_up, read_config
from frs.detectors.published.reading import Checkpoint
from frs.detectors.published.resnet import read_resnet
from frs.errors import WeightsError
from tests.frs.detectors.published.mmdet_lab import Mmdet
from tests.frs.detectors.published.test_mmdet import fcos, gfl, retinanet

CFG3 = """
default_scope = 'mmdet'
model = dict(
    backbone=dict(depth=50, init_cfg=dict(checkpoint='x', type='Pretrained'), style='caffe', type='ResNet'),
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=4, ratios=[0.5, 1.0, 2.0, ], scales_per_octave=3,
                              strides=[8, 16, 32, 64, 128, ], type='AnchorGenerator'),
        bbox_coder=dict(target_means=[0.0, ] * 4, target_stds=[1.0, 1.0, 1.0, 1.0, ], type='DeltaXYWHBBoxCoder'),
        num_classes=80, type='RetinaHead'),
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675, ], pad_size_divisor=32,
                           std=[1.0, 1.0, 1.0, ], type='DetDataPreprocessor'),
    type='RetinaNet')
work_dir = open('was_run', 'w')
"""
CFG2 = """
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='FCOS',
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    neck=dict(type='FPN', add_extra_convs='on_output', relu_before_extra_convs=False),
    bbox_head=dict(type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True, center_sampling=True,
                   loss_bbox=dict(type='GIoULoss', loss_weight=1.0)))
"""


@pytest.fixture(scope="module")
def body() -> dict[str, Tensor]:
    return Mmdet().state


def load(folder: Path, state: dict[str, Tensor], said: list[str] | None = None, **meta: Any) -> Detector:
    torch.save({"meta": meta, "state_dict": OrderedDict(state), "optimizer": {"lr": 0.1}}, folder / "m.pth")
    return from_mmdet(folder / "m.pth", log=(said if said is not None else []).append)


def test_the_configuration_of_mmdetection_3(body: dict[str, Tensor], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    names = tuple(f"thing {i}" for i in range(80))
    detector = load(tmp_path, retinanet(body), said, cfg=CFG3, dataset_meta={"classes": names, "palette": [(1, 2, 3)]})
    spec = detector.spec
    assert isinstance(detector, RetinaNet)
    assert (spec.backbone, spec.backbone_style, spec.channel_order) == ("resnet50", "caffe", "bgr")
    assert (spec.pixel_mean, spec.pixel_std) == ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    assert (spec.classes, spec.category_ids) == (names, tuple(range(1, 81)))
    assert not (tmp_path / "was_run").exists()
    told = "\n".join(said)
    assert "backbone_style caffe (of the file)" in told
    assert "norm_eps 1e-05 (not in the file, so the usual)" in told


def test_the_configuration_of_mmdetection_2(body: dict[str, Tensor], tmp_path: Path) -> None:
    detector = load(tmp_path, fcos(body, variant=False), config=CFG2, CLASSES=["a", "b"] * 40)
    assert isinstance(detector, FCOS)
    spec = detector.spec
    assert (spec.backbone_style, spec.channel_order, spec.relu_before_p7) == ("pytorch", "rgb", False)
    assert (spec.box_activation, spec.centerness_on, spec.box_loss) == ("scaled_relu", "regression", "giou")
    assert spec.center_sampling == 1.5
    assert spec.classes == ("a", "b") * 40


def test_without_a_configuration_it_is_the_published_model(body: dict[str, Tensor], tmp_path: Path) -> None:
    said: list[str] = []
    detector = load(tmp_path, gfl(body), said)
    assert isinstance(detector, GFL)
    assert (detector.spec.channel_order, detector.spec.backbone_style) == ("rgb", "pytorch")
    assert detector.spec.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert detector.spec.classes[11] == "stop sign"
    told = "\n".join(said)
    assert "there is no configuration in the file" in told
    assert "bbox_head.integral.project left out, the constant 0 to 16" in told


def test_what_is_given_comes_first(body: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"meta": {"cfg": CFG3}, "state_dict": retinanet(body)}, tmp_path / "m.pth")
    spec = from_mmdet(tmp_path / "m.pth", norm_eps=0.5, backbone_style="pytorch", channel_order="rgb").spec
    assert (spec.norm_eps, spec.backbone_style, spec.channel_order) == (0.5, "pytorch", "rgb")


def test_fcos_under_its_old_names(body: dict[str, Tensor], tmp_path: Path) -> None:
    state = fcos(body, variant=False)
    old = {name.replace("bbox_head.conv_", "bbox_head.fcos_"): tensor for name, tensor in state.items()}
    assert sorted(old) != sorted(state)
    new, loaded = (load(tmp_path, each).state_dict() for each in (state, old))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in new.items())


class HistoryBuffer:
    """Stands for what mmengine pickles."""


@pytest.mark.parametrize("what", ["an object", "code"])
def test_more_than_plain_data_is_refused_with_a_recipe(
    body: dict[str, Tensor], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history = HistoryBuffer() if what == "an object" else Evil()
    path = tmp_path / "mmengine.pth"
    file = {"meta": {"cfg": CFG3}, "state_dict": retinanet(body), "message_hub": {"log_scalars": history}}
    torch.save(file, path)
    with pytest.raises(WeightsError) as caught:
        from_mmdet(path)
    assert not (tmp_path / "was_run").exists()
    said, _, recipe = str(caught.value).partition("plain data:\n")
    assert said.startswith(f"{path}: holds objects of ")
    assert "where mmengine is installed, and if you trust the file" in said
    if what == "an object":  # the recipe does what it promises
        assert f"{HistoryBuffer.__module__}.HistoryBuffer" in said
        exec("\n".join(line.strip() for line in recipe.splitlines()), {})
        assert from_mmdet("plain.pth").spec.backbone_style == "caffe"


class Evil:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> Any:
        return open, ("was_run", "w")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (CFG2, "its tensors are of a retinanet, its configuration is of a FCOS"),
        (
            CFG3.replace("[8, 16, 32, 64, 128, ]", "[4, 8]"),
            r"has .*anchor_generator.strides \(4, 8\); a detector of ours",
        ),
        (CFG3.replace("[0.5, 1.0, 2.0, ]", "[1.0]"), "has 9 anchors at a place, its configuration .* has 3"),
        (CFG3.replace("octave_base_scale=4", "octave_base_scale='x'"), "says something strange of a retinanet"),
        (CFG3.replace("ratios=[0.5, 1.0, 2.0, ]", "ratios=7"), "says something strange|no detector of ours"),
        (CFG3.replace("'caffe'", "5"), "backbone_style: got 5, expected pytorch or caffe"),
        (CFG3.replace("[103.53, 116.28, 123.675, ]", "'red'"), "no detector of ours"),
        (CFG3.replace("[103.53, 116.28, 123.675, ]", "[1.0]"), "no detector of ours"),
    ],
)
def test_a_configuration_that_contradicts(body: dict[str, Tensor], tmp_path: Path, config: str, sentence: str) -> None:
    assert config != CFG3
    with pytest.raises(WeightsError, match=sentence):
        load(tmp_path, retinanet(body), cfg=config)


def test_tensors_that_do_not_fit(body: dict[str, Tensor], tmp_path: Path) -> None:
    state = gfl(body)
    with pytest.raises(WeightsError, match=r"integral.project is not 0, 1, 2, \.\.\."):
        load(tmp_path, {**state, "bbox_head.integral.project": torch.ones(17)})
    with pytest.raises(WeightsError, match=r"1 unexpected \(\(unknown\) bbox_head.atss_iou.weight\)"):
        load(tmp_path, {**state, "bbox_head.atss_iou.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match="has deformable convolutions"):
        load(tmp_path, {**state, "backbone.layer2.0.conv2.conv_offset.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match="has no head of mmdetection's RetinaNet, GFL, FCOS, FasterRCNN"):
        load(tmp_path, body)
    with pytest.raises(WeightsError, match="holds no state dict"):
        load(tmp_path, {"bbox_head.gfl_cls.weight": [1.0]})  # type: ignore[dict-item]


@pytest.mark.parametrize("content", [b"", b"words", pickle.dumps([1], protocol=2), b"PK\x03\x04torn"])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.pth: "):
        from_mmdet(tmp_path / "m.pth")
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file"):
        from_mmdet(tmp_path / "gone.pth")


def test_the_text_is_read_and_not_run() -> None:
    text = "a = dict(b=[1, -2.5], c={'d': (True, None)}, e=f(3), **g)\nh, i = 1, 2\nj = [x for x in y]\na.b = 3"
    assert read_config(text) == {"a": {"b": (1, -2.5), "c": {"d": (True, None)}, "e": None}, "j": None}
    assert look_up(read_config(text), "a.c.d") == (True, None)
    assert look_up(read_config(text), "a.b.d") is None


@pytest.mark.parametrize(
    "text", ["model = dict(", "a = " + "(" * 5000 + ")" * 5000, "a = " + "-" * 200_000 + "1", "a\0b", "a = 1" * 300_000]
)
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(ValueError, match="it is "):
        read_config(text)


@pytest.mark.parametrize(("blocks", "name"), [((3, 4, 6, 3), "resnet50"), ((3, 4, 23, 3), "resnet101")])
def test_a_resnets_depth(blocks: tuple[int, ...], name: str) -> None:
    state = {f"b.layer{i + 1}.{k}.conv3.weight": torch.ones(1) for i, count in enumerate(blocks) for k in range(count)}
    assert read_resnet(Checkpoint("file", state, {}), "b.") == name
