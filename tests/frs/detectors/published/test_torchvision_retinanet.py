"""torchvision's RetinaNets with random numbers, saved and loaded: the same features, answers, boxes and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

from frs.detectors import RetinaNet, from_torchvision
from frs.detectors.dense import flatten
from frs.detectors.published.torchvision import FROZEN_EPS_0
from frs.errors import WeightsError
from tests.frs.detectors.published.lab import (
    SIZES,
    assert_same,
    assert_same_boxes,
    frozen_backbone,
    images,
    normalised,
    settle,
    small_retinanet,
    some_objects,
    spread,
)


def made(version: str) -> Any:
    """One of the published networks: v1, v1 with frozen norms without epsilon, or v2."""
    build = retinanet_resnet50_fpn_v2 if version == "v2" else retinanet_resnet50_fpn
    model = build(weights=None, weights_backbone=None, num_classes=91)
    settle(model, lambda x: model.head(list(model.backbone(x).values())))
    if version == "frozen":
        model.backbone = frozen_backbone(model.backbone, [2, 3, 4])
    with torch.no_grad():
        features = list(model.backbone(images((128, 128)) / 64.0 - 2.0).values())
        outputs = model.head(features)
        spread(model.head.classification_head.cls_logits, [outputs["cls_logits"]], 1.0, -5.0)
        spread(model.head.regression_head.bbox_reg, [outputs["bbox_regression"]], 0.2, 0.0)
    return model


@pytest.fixture(scope="module", params=["v1", "frozen", "v2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RetinaNet]:
    model = made(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(model.state_dict(), path)
    detector = from_torchvision(path, norm_eps=0.0 if request.param == "frozen" else None)
    assert isinstance(detector, RetinaNet)
    return model, detector


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_and_outputs(pair: tuple[Any, RetinaNet], size: tuple[int, int]) -> None:
    model, detector = pair
    pixels = images(size)
    x = normalised(pixels)
    torch.testing.assert_close(detector.normalize(pixels), x, atol=1e-5, rtol=1e-5)
    theirs, ours = list(model.backbone(x).values()), detector.features(x)
    assert len(ours) == len(theirs) == 5
    for mine, their in zip(ours, theirs, strict=True):
        assert_same(mine, their)
    expected, found = model.head(theirs), detector.head(ours)
    assert_same(flatten(found.class_logits, 91), expected["cls_logits"])
    assert_same(flatten(found.box_regression, 4), expected["bbox_regression"])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_boxes(pair: tuple[Any, RetinaNet], size: tuple[int, int]) -> None:
    model, detector = pair
    pixels = images(size)
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    expected = model(list(pixels / 255.0))
    features = detector.features(detector.normalize(pixels))
    found = detector.reference_detections(features, detector.head(features), image_size=size, max_detections=300)
    for mine, their in zip(found, expected, strict=True):
        assert_same_boxes(mine, (their["boxes"], their["scores"], their["labels"]))


@pytest.mark.parametrize("size", SIZES)
def test_losses(pair: tuple[Any, RetinaNet], size: tuple[int, int]) -> None:
    model, detector = pair
    pixels = images(size)
    wanted, labelled = some_objects()
    with torch.no_grad():
        theirs = list(model.backbone(normalised(pixels)).values())
        features = detector.features(normalised(pixels))
    anchors = model.anchor_generator(ImageList(pixels, [size] * 2), theirs)
    expected = model.compute_loss(labelled, model.head(theirs), anchors)
    losses = detector.loss(features, detector.head(features), wanted)
    torch.testing.assert_close(losses["classification"], expected["classification"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], atol=1e-4, rtol=1e-4)
    # The gradients of both trainings at the class output are the same too.
    torch.autograd.backward(losses["classification"])
    torch.autograd.backward(expected["classification"])
    mine, their = detector.class_output.weight.grad, model.head.classification_head.cls_logits.weight.grad
    assert mine is not None
    assert float(mine.abs().max()) > 0
    torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-3)
    for module in (model, detector):
        module.zero_grad()


def test_the_facts_and_the_file_are_accounted_for(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in small_retinanet(91).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    said: list[str] = []
    detector = from_torchvision(tmp_path / "w.pth", norm_eps=0.001, log=said.append)
    assert detector.spec.classes[:3] == ("__background__", "person", "bicycle")
    assert detector.spec.category_ids == tuple(range(91))
    assert detector.spec.norm_eps == 0.001
    assert {module.eps for module in detector.modules() if isinstance(module, nn.BatchNorm2d)} == {0.001}
    told = "\n".join(said).replace(f"{tmp_path}/", "")
    assert "w.pth: norm_eps 0.001 (given)" in told
    assert "w.pth: channel_order rgb (not in the file, so the usual)" in told
    assert "w.pth: 20 of 20 num_batches_tracked are not in the file; set to 0" in told
    assert "w.pth: retinanet, resnet18, 91 classes, 136 tensors" in told


def test_names_of_the_oldest_files(tmp_path: Path) -> None:
    state = small_retinanet(91)
    old = {}
    for name, tensor in state.items():
        for part in ("inner_blocks", "layer_blocks"):
            for i in range(3):
                name = name.replace(f"{part}.{i}.0.", f"{part}.{i}.")
        for i in range(4):
            name = name.replace(f"_head.conv.{i}.0.", f"_head.conv.{2 * i}.")
        old[name] = tensor
    assert sorted(old) != sorted(state)
    torch.save(state, tmp_path / "new.pth")
    torch.save(old, tmp_path / "old.pth")
    new, loaded = (from_torchvision(tmp_path / name).state_dict() for name in ("new.pth", "old.pth"))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in new.items())


def test_other_classes_have_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(small_retinanet(3), path)
    with pytest.raises(WeightsError, match=r"has 3 columns of classes, .*; say with `classes` which 2 they are"):
        from_torchvision(path)
    with pytest.raises(WeightsError, match="`classes` must name 2, and it names 1"):
        from_torchvision(path, classes=("cat",))
    spec = from_torchvision(path, classes=("cat", "horse")).spec
    assert (spec.classes, spec.category_ids) == (("__background__", "cat", "horse"), (0, 17, 19))
    spec = from_torchvision(path, classes=("cat", "unicorn")).spec
    assert spec.category_ids == (0, 1, 2)


def spoil(state: dict[str, Tensor], what: str) -> None:
    if what == "strange":
        state["mask_head.weight"] = torch.zeros(1)
    if what == "missing":
        del state["backbone.body.layer3.1.bn1.running_var"]
    if what == "twice":
        state["backbone.fpn.inner_blocks.0.weight"] = state["backbone.fpn.inner_blocks.0.0.weight"]
    if what == "no numbers":
        state["head.regression_head.bbox_reg.bias"][0] = float("nan")
    if what == "blocks":
        for name in [name for name in state if name.startswith("backbone.body.layer3.1.")]:
            del state[name]
    if what == "anchors":
        state["head.regression_head.bbox_reg.weight"] = torch.zeros(24, 256, 3, 3)
    if what == "head":
        for name in [name for name in state if name.startswith("head.")]:
            del state[name]
    if what == "pyramid":
        del state["backbone.fpn.extra_blocks.p7.weight"]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("strange", r"1 unexpected \(\(unknown\) mask_head.weight\)"),
        ("missing", r"1 missing \(backbone.body.layer3.1.bn1.running_var\)"),
        ("twice", r"two tensors are fpn.lateral.0.weight \(one is backbone.fpn.inner_blocks.0.weight\)"),
        ("no numbers", r"1 tensor holds NaN or infinity \(first: box_output.bias\)"),
        ("blocks", r"has \(2, 2, 1, 2\) blocks a layer, which is none of resnet18,"),
        ("anchors", "has 6 anchors at a place"),
        ("head", "has no head of torchvision"),
        ("pyramid", "there is no tensor backbone.fpn.extra_blocks.p7.weight"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, what: str, sentence: str) -> None:
    state = small_retinanet(91)
    spoil(state, what)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=sentence) as caught:
        from_torchvision(tmp_path / "w.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'w.pth'}: ")


@pytest.mark.parametrize("name", sorted(FROZEN_EPS_0))
def test_a_name_is_torchvisions_own_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = get_model_weights(name).COCO_V1
    assert FROZEN_EPS_0[name] in weights.url
    model = get_model_builder(name)(weights=None, weights_backbone=None, num_classes=91)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: model.state_dict())
    assert from_torchvision(name).spec.norm_eps == 0.0


def test_without_a_network_a_name_says_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(type(get_model_weights("retinanet_resnet50_fpn_v2").COCO_V1), "get_state_dict", fail)
    with pytest.raises(WeightsError, match=r"\(URLError\); without a network bring https://\S+5905b1c5.pth here"):
        from_torchvision("retinanet_resnet50_fpn_v2")
