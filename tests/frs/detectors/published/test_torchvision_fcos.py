"""torchvision's FCOS with random numbers, saved and loaded: the same features, answers, boxes and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from frs.detectors import FCOS, from_torchvision
from frs.detectors.dense import flatten
from frs.detectors.fcos import FCOSOutputs
from tests.frs.detectors.published.lab import (
    SIZES,
    assert_same,
    assert_same_boxes,
    images,
    normalised,
    settle,
    some_objects,
    spread,
)


def made() -> Any:
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    settle(model, lambda x: model.head(list(model.backbone(x).values())))
    with torch.no_grad():
        outputs = model.head(list(model.backbone(images((128, 128)) / 64.0 - 2.0).values()))
        spread(model.head.classification_head.cls_logits, [outputs["cls_logits"]], 1.0, -3.0)
        spread(model.head.regression_head.bbox_reg, [outputs["bbox_regression"]], 1.0, 1.0)
        spread(model.head.regression_head.bbox_ctrness, [outputs["bbox_ctrness"]], 1.0, 1.0)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FCOS]:
    model = made()
    path = tmp_path_factory.mktemp("weights") / "fcos.pth"
    torch.save(model.state_dict(), path)
    detector = from_torchvision(path)
    assert isinstance(detector, FCOS)
    return model, detector


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_and_outputs(pair: tuple[Any, FCOS], size: tuple[int, int]) -> None:
    model, detector = pair
    theirs = list(model.backbone(normalised(images(size))).values())
    ours = detector.features(normalised(images(size)))
    for mine, their in zip(ours, theirs, strict=True):
        assert_same(mine, their)
    expected, found = model.head(theirs), detector.head(ours)
    assert isinstance(found, FCOSOutputs)
    assert_same(flatten(found.class_logits, 91), expected["cls_logits"])
    assert_same(flatten(found.box_regression, 4), expected["bbox_regression"])
    assert_same(flatten(found.centerness, 1), expected["bbox_ctrness"])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_boxes(pair: tuple[Any, FCOS], size: tuple[int, int]) -> None:
    model, detector = pair
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    expected = model(list(images(size) / 255.0))
    features = detector.features(detector.normalize(images(size)))
    found = detector.reference_detections(
        features, detector.head(features), image_size=size, score_threshold=0.2, iou_threshold=0.6
    )
    for mine, their in zip(found, expected, strict=True):
        assert_same_boxes(mine, (their["boxes"], their["scores"], their["labels"]))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_losses(pair: tuple[Any, FCOS], size: tuple[int, int]) -> None:
    model, detector = pair
    wanted, labelled = some_objects()
    theirs = list(model.backbone(normalised(images(size))).values())
    anchors = model.anchor_generator(ImageList(images(size), [size] * 2), theirs)
    places = [level.shape[2] * level.shape[3] for level in theirs]
    expected = model.compute_loss(labelled, model.head(theirs), anchors, places)
    features = detector.features(normalised(images(size)))
    losses = detector.loss(features, detector.head(features), wanted)
    names = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    assert set(losses) == set(names)
    for ours, their in names.items():
        torch.testing.assert_close(losses[ours], expected[their], atol=1e-4, rtol=1e-4)
