"""Faster R-CNN's network and boxes, against torchvision's own parts with the same weights and mmdetection's rules."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, batched_nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frs.detectors import (
    FasterRCNN,
    FasterRCNNSpec,
    HeadOutputs,
    load_detector,
    multiply_accumulates,
    save_detector,
)
from frs.detectors.fpn import FPN
from frs.detectors.roi_align import pooled
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.export.torch_predictor import TorchPredictor
from tests.frs.detectors.two_stage import (
    HEIGHT,
    IMAGES,
    V2,
    WIDTH,
    answers,
    as_targets,
    build,
    busy,
    generated,
    images_of,
    torchvision_twin,
)
from tests.frs.export.lab import pictures, randomise


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    """Under torchvision's conventions."""
    return busy(IMAGES, conventions="torchvision")


def test_shapes_and_strides_of_every_level() -> None:
    for levels in (4, 5):
        features, outputs = answers(build(levels=levels).eval(), images_of(1))
        assert [tuple(f.shape[2:]) for f in features] == [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)][:levels]
        assert {o.shape[1] for o in outputs.class_logits} == {3}
        assert {o.shape[1] for o in outputs.box_regression} == {12}


def test_the_objectness_alone_is_the_heads(detector: FasterRCNN) -> None:
    features, outputs = answers(detector, images_of(1))
    for alone, both in zip(detector.class_logits(features), outputs.class_logits, strict=True):
        assert torch.equal(alone, both)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_pyramid_is_torchvisions(norm: str) -> None:
    theirs = FeaturePyramidNetwork([8, 16, 24, 32], 12, LastLevelMaxPool(), nn.BatchNorm2d if norm == "batch" else None)
    ours = FPN([8, 16, 24, 32], 12, levels=5, p6_source="pool", norm=norm)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    stages = [torch.randn(2, c, 24 // 2**i, 40 // 2**i) for i, c in enumerate((8, 16, 24, 32))]
    expected = theirs(OrderedDict(zip("0123", stages, strict=True)))
    for level, wanted in zip(ours(stages), expected.values(), strict=True):
        torch.testing.assert_close(level, wanted)


@pytest.mark.parametrize("total", [30, 1000])
@pytest.mark.parametrize("sizes", [[(HEIGHT, WIDTH)] * 3, [(81, 131)] * 3, [(96, 131), (81, 160), (70, 99)]])
def test_proposals_are_torchvisions(total: int, sizes: list[tuple[int, int]], detector: FasterRCNN) -> None:
    """Anchors are spread over the input with its padding, and boxes clipped to the image in it."""
    images = images_of(3)
    features, outputs = answers(detector, images)
    twin = torchvision_twin(detector, HEIGHT, WIDTH).rpn
    twin._pre_nms_top_n["testing"], twin._post_nms_top_n["testing"] = 100, total
    named = OrderedDict(zip(("0", "1", "2", "3", "pool"), features, strict=True))
    expected, _ = twin(ImageList(images, sizes), named)
    inside = sizes[0] if len(set(sizes)) == 1 else torch.tensor(sizes)
    boxes, present = detector.rpn.proposals(outputs, inside, per_level=100, total=total)
    for image in range(3):
        torch.testing.assert_close(boxes[image, present[image]], expected[image], atol=1e-3, rtol=0)


def test_mmdetections_proposals_keep_narrow_boxes_and_drop_empty_ones() -> None:
    detector = build()
    outputs = HeadOutputs(
        [torch.full((1, 3, 24 // 2**i, 40 // 2**i), -5.0) for i in range(5)],
        [torch.zeros(1, 12, 24 // 2**i, 40 // 2**i) for i in range(5)],
    )
    outputs.class_logits[0][0, 1, 10, 10] = outputs.class_logits[0][0, 1, 10, 20] = 9.0
    outputs.box_regression[0][0, 4, 10, 20] = -100.0  # far to the left of the image: clipped to nothing
    boxes, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=5, total=1000)
    assert boxes[0, 0].tolist() == [24.0, 24.0, 56.0, 56.0]
    assert bool(present[0, 0])
    assert bool((boxes[0, present[0]][:, 2] > boxes[0, present[0]][:, 0]).all())
    narrow = torch.tensor([[0.0, 0.0, 5e-4, 9.0], [0.0, 0.0, 0.0, 9.0]])
    assert detector.rpn._large(narrow).tolist() == [True, False]
    assert build(conventions="torchvision").rpn._large(narrow).tolist() == [False, False]


@pytest.mark.parametrize("options", [{}, V2], ids=["v1", "v2"])
def test_the_detections_are_torchvisions(options: dict[str, Any]) -> None:
    """From pixels to boxes, with torchvision's own transform, RPN and second stage."""
    ours = busy(IMAGES, conventions="torchvision", **options)
    images = images_of(2)
    predictor = TorchPredictor(ours, HEIGHT, WIDTH, detections=100)
    with torch.no_grad():
        expected = torchvision_twin(ours, HEIGHT, WIDTH)([image / 255 for image in images])
    for found, wanted in zip(predictor.predict(images.numpy()), expected, strict=True):
        assert len(found) == len(wanted["boxes"]) == 100
        np.testing.assert_allclose(found.scores, wanted["scores"], atol=1e-4)
        np.testing.assert_array_equal(found.labels + 1, wanted["labels"])
        np.testing.assert_allclose(found.boxes, wanted["boxes"], atol=0.05)


@torch.no_grad()
def test_mmdetections_detections_written_out() -> None:
    """Class by class over all proposals; boxes without area stay."""
    detector = busy(IMAGES)
    features, outputs = answers(detector, images_of(1))
    detector.roi_head.box_output.bias[0] = -2000.0  # the first class's boxes leave the image to the left
    boxes, scores, labels = detector.reference_detections(features, outputs, image_size=(HEIGHT, WIDTH))[0]
    proposals, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=1000, total=1000)
    rois = proposals[0, present[0]]
    logits, deltas = detector.roi_head(detector._pooled(features, rois, torch.zeros(len(rois), dtype=torch.int64)))
    parts = []
    for k in range(3):
        score = logits.softmax(dim=1)[:, k]
        centre, size = (rois[:, :2] + rois[:, 2:]) / 2, rois[:, 2:] - rois[:, :2]
        centre = centre + deltas[:, k, :2] * 0.1 * size
        half = size * (deltas[:, k, 2:] * 0.2).clamp(-4.135166556742356, 4.135166556742356).exp() / 2
        decoded = torch.cat([centre - half, centre + half], dim=1)
        decoded = torch.stack([decoded[:, i].clamp(0, (WIDTH, HEIGHT)[i % 2]) for i in range(4)], dim=1)
        parts.append((decoded[score > 0.05], score[score > 0.05], torch.full((int((score > 0.05).sum()),), k)))
    all_boxes, all_scores, all_labels = (torch.cat(part) for part in zip(*parts, strict=True))
    kept = batched_nms(all_boxes, all_scores, all_labels, 0.5)[:100]
    torch.testing.assert_close(boxes, all_boxes[kept], atol=1e-3, rtol=0)
    torch.testing.assert_close(scores, all_scores[kept])
    assert torch.equal(labels, all_labels[kept])
    assert bool((boxes[labels == 0][:, 2] == 0).any())


@pytest.mark.parametrize("conventions", ["mmdet", "torchvision"])
def test_the_graph_decodes_as_the_reference_does(conventions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many proposals and candidates as the reference has, the two selections are the same rule; mmdetection's
    RoIAlign takes as many samples as fit, which the graph cannot."""
    detector = busy(IMAGES, conventions=conventions)
    monkeypatch.setattr("frs.detectors.faster_rcnn.pooled", lambda *a, **k: pooled(*a, **{**k, "samples": 2}))
    options: dict[str, Any] = {"score_threshold": 0.2, "detections": 60}
    reference = TorchPredictor(detector, HEIGHT, WIDTH, **options)
    options.update(candidates=3000, proposals=1000, rounds=40)
    graph = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph", **options)
    for ours, theirs in zip(graph.predict(IMAGES), reference.predict(IMAGES), strict=True):
        assert len(ours) == len(theirs) > 20
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_the_graphs_proposals_are_the_best_of_all_levels(detector: FasterRCNN) -> None:
    _, outputs = answers(detector, images_of(2))
    exact, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=60, total=60)
    ours, alive = detector.rpn.graph_proposals(outputs, (HEIGHT, WIDTH), 60)
    assert bool(present.all())
    assert bool(alive.all())
    torch.testing.assert_close(ours, exact)


def test_fewer_proposals_than_asked_for_are_no_detections() -> None:
    """On a small image NMS leaves fewer than the graph's fixed number; the rest scores nothing."""
    small = pictures(2, 32, 32)
    detector = busy(small, conventions="torchvision")
    features, outputs = answers(detector, torch.from_numpy(small))
    _, alive = detector.rpn.graph_proposals(outputs, (32, 32), 300)
    assert alive.shape == (2, 300)
    assert 0 < int(alive.sum()) < alive.numel()
    detector.proposals = 300
    found = detector.decode(features, outputs, candidates=900, image_size=(32, 32))
    assert int((found.scores > 0).sum()) <= 3 * int(alive.sum())
    assert not bool(found.scores.isnan().any())


def test_distillation_between_unlike_networks() -> None:
    """Other backbone, widths and depth of the RPN, and another second stage, which FRS does not look at."""
    student = build(1, fpn_channels=16, head_channels=8)
    teacher = build(2, backbone="resnet26", head_channels=24, head_depth=2, fpn_norm="batch", box_head="conv")
    randomise(student)  # a new ResNet's last BatchNorms are zero
    objective = DistillationObjective(student, teacher, DistillationWeights(alpha=0.01, beta=0.1, warmup_steps=0))
    terms = objective.train()(images_of(2), as_targets(generated()), 1)
    for name in ("rpn_classification", "rpn_box", "classification", "box", "frs_features", "frs_classes"):
        assert bool(terms.parts[name].isfinite())
        assert float(terms.parts[name].detach()) > 0
    torch.autograd.backward(terms.parts["frs_features"] + terms.parts["frs_classes"])
    for part in (objective.adapters, student.fpn, student.rpn.tower, student.rpn.class_output, student.backbone):
        assert all(p.grad is not None and bool(p.grad.any()) for p in part.parameters() if p.requires_grad)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_multiply_accumulates_count_the_second_stage_for_every_proposal() -> None:
    detector = build()
    counts = []
    for detector.proposals in (100, 200):
        counts.append(multiply_accumulates(detector, (HEIGHT, WIDTH)))
    assert counts[1] - counts[0] == 100 * (32 * 49 * 64 + 64 * 64 + 64 * (4 + 12))


@pytest.mark.parametrize("options", [{}, {**V2, "conventions": "torchvision", "levels": 4, "ratios": (1.0,)}])
def test_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    detector = busy(IMAGES, **options)
    save_detector(tmp_path / "x.safetensors", detector)
    loaded = load_detector(tmp_path / "x.safetensors")
    assert isinstance(loaded, FasterRCNN)
    assert loaded.spec == detector.spec
    with torch.no_grad():
        first_answer, second_answer = (
            made.decode(*answers(made, images_of(1)), candidates=50, image_size=(HEIGHT, WIDTH))
            for made in (detector, loaded)
        )
    assert torch.equal(first_answer.boxes, second_answer.boxes)
    assert torch.equal(first_answer.scores, second_answer.scores)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": 3}, "levels: got 3, expected 4 to 5"),
        ({"conventions": "detectron2"}, "conventions: got 'detectron2', expected mmdet or torchvision"),
        ({"box_head": "none"}, "box_head: got 'none', expected fc or conv"),
        ({"fpn_norm": "group"}, "fpn_norm: got 'group', expected none or batch"),
        ({"roi_channels": 10**6}, "roi_channels"),
        ({"ratios": ()}, "ratios"),
        ({"anchor_scale": math.nan}, "anchors"),
    ],
)
def test_a_spec_without_sense_is_refused(changes: dict[str, Any], sentence: str) -> None:
    spec = build().spec
    with pytest.raises(ValueError, match=sentence):
        FasterRCNNSpec.from_json(dataclasses.replace(spec, **changes).to_json())
