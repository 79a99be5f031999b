"""torchvision's Faster R-CNNs with random numbers, saved and loaded: the same features, proposals' answers, boxes, losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2

from frs.detectors import FasterRCNN, from_torchvision
from tests.frs.detectors.published.lab import (
    SIZES,
    assert_same,
    assert_same_boxes,
    frozen_backbone,
    images,
    normalised,
    settle,
    spread,
)


def made(version: str) -> Any:
    build = fasterrcnn_resnet50_fpn_v2 if version == "v2" else fasterrcnn_resnet50_fpn
    model = build(weights=None, weights_backbone=None, num_classes=91)

    def run(x: torch.Tensor) -> None:
        features = list(model.backbone(x).values())
        model.rpn.head(features)
        model.roi_heads.box_predictor(model.roi_heads.box_head(torch.randn(64, 256, 7, 7) * features[0].std()))

    settle(model, run)
    if version == "frozen":
        model.backbone = frozen_backbone(model.backbone, [1, 2, 3, 4])
    with torch.no_grad():
        objectness, boxes = model.rpn.head(list(model.backbone(images((128, 128)) / 64.0 - 2.0).values()))
        spread(model.rpn.head.cls_logits, objectness, 1.0, 0.0)
        spread(model.rpn.head.bbox_pred, boxes, 0.2, 0.0)
        hidden = model.roi_heads.box_head(torch.randn(64, 256, 7, 7) * 3)
        for layer, deviation in (
            (model.roi_heads.box_predictor.cls_score, 1.5),
            (model.roi_heads.box_predictor.bbox_pred, 1.0),
        ):
            layer.weight *= deviation / layer(hidden).std()
    return model


@pytest.fixture(scope="module", params=["v1", "frozen", "v2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FasterRCNN]:
    model = made(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(model.state_dict(), path)
    detector = from_torchvision(path, norm_eps=0.0 if request.param == "frozen" else None)
    assert isinstance(detector, FasterRCNN)
    return model, detector


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_and_outputs(pair: tuple[Any, FasterRCNN], size: tuple[int, int]) -> None:
    model, detector = pair
    theirs = list(model.backbone(normalised(images(size))).values())
    ours = detector.features(normalised(images(size)))
    for mine, their in zip(ours, theirs, strict=True):
        assert_same(mine, their)
    (objectness, boxes), found = model.rpn.head(theirs), detector.head(ours)
    for mine, their in zip([*found.class_logits, *found.box_regression], [*objectness, *boxes], strict=True):
        assert_same(mine, their)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_boxes(pair: tuple[Any, FasterRCNN], size: tuple[int, int]) -> None:
    model, detector = pair
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    expected = model(list(images(size, 1) / 255.0))
    features = detector.features(detector.normalize(images(size, 1)))
    found = detector.reference_detections(features, detector.head(features), image_size=size)
    assert detector.spec.classes[0] == "person"
    for mine, their in zip(found, expected, strict=True):
        assert_same_boxes(mine, (their["boxes"], their["scores"], their["labels"] - 1), least=20)
