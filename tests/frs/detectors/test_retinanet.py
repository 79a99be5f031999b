from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, nms

from frs.detectors import HeadOutputs, RetinaNet, RetinaNetSpec, Targets, build_detector, multiply_accumulates
from frs.detectors import boxes as box_math
from frs.detectors.anchors import base_anchors, grid_anchors
from frs.errors import WeightsError

SHAPES = [(8, 12), (4, 6), (2, 3)]


def spec(**changes: Any) -> RetinaNetSpec:
    fields: dict[str, Any] = {
        "classes": ("a", "b", "c"),
        "category_ids": (1, 5, 9),
        "backbone": "resnet18",
        "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8},
        "fpn_channels": 16,
        "levels": 3,
        "head_depth": 1,
    }
    return RetinaNetSpec(**{**fields, **changes})


def build(**changes: Any) -> RetinaNet:
    torch.manual_seed(0)
    built = build_detector(spec(**changes))
    assert isinstance(built, RetinaNet)
    return built


def random_outputs(batch: int = 2, seed: int = 1) -> HeadOutputs:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, 27, *shape, generator=generator) * 2 - 2 for shape in SHAPES]
    regression = [torch.randn(batch, 36, *shape, generator=generator) * 0.3 for shape in SHAPES]
    return HeadOutputs(logits, regression)


def all_pairs(outputs: HeadOutputs, image: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (N, K), boxes (N, 4) of every anchor, written out place by place; size of each level's part."""
    scores, found = [], []
    for level, (stride, (height, width)) in enumerate(zip((8, 16, 32), SHAPES, strict=True)):
        base = base_anchors(stride, 4.0, 3, (0.5, 1.0, 2.0))
        for y in range(height):
            for x in range(width):
                for a in range(9):
                    logits = outputs.class_logits[level][image, a * 3 : a * 3 + 3, y, x]
                    deltas = outputs.box_regression[level][image, a * 4 : a * 4 + 4, y, x]
                    anchor = base[a] + torch.tensor([x, y, x, y]) * stride
                    scores.append(logits.sigmoid())
                    found.append(box_math.clip(box_math.decode(deltas, anchor), (64, 96)))
    sizes = torch.tensor([h * w * 9 for h, w in SHAPES])
    return torch.stack(scores), torch.stack(found), sizes


def test_shapes_and_strides_of_every_level() -> None:
    detector = build(levels=5).eval()
    images = torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8)
    features = detector.features(detector.normalize(images))
    assert [tuple(f.shape) for f in features] == [(2, 16, 128 // s, 192 // s) for s in (8, 16, 32, 64)] + [
        (2, 16, 1, 2)
    ]
    outputs = detector.head(features)
    assert [o.shape[1] for o in outputs.class_logits] == [27] * 5
    assert [o.shape[1] for o in outputs.box_regression] == [36] * 5


def test_the_class_branch_alone_is_the_heads() -> None:
    detector = build(head_norm="group").eval()
    features = detector.features(detector.normalize(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)))
    for alone, both in zip(detector.class_logits(features), detector.head(features).class_logits, strict=True):
        assert torch.equal(alone, both)


def test_a_new_detector_scores_everything_at_the_prior() -> None:
    detector = build().eval()
    outputs = detector.head(detector.features(detector.normalize(torch.zeros(1, 3, 64, 64))))
    for logits in outputs.class_logits:
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), atol=2e-3, rtol=0.2)


def test_normalisation_is_the_backbones() -> None:
    detector = build()
    white = detector.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(white, torch.tensor(expected))
    assert (
        build(pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)).normalize(torch.tensor([[[[7.0]]] * 3])).max() == 7
    )


@pytest.mark.parametrize("candidates", [1, 50, 300])
def test_the_graphs_decode_finds_the_best_pairs_of_all(candidates: int) -> None:
    outputs = random_outputs()
    found = build().decode([], outputs, candidates=candidates, image_size=(64, 96))
    for image in range(2):
        scores, boxes, _ = all_pairs(outputs, image)
        best, pair = scores.flatten().topk(candidates)
        torch.testing.assert_close(found.scores[image], best)
        assert torch.equal(found.labels[image], pair % 3)
        torch.testing.assert_close(found.boxes[image], boxes[pair // 3], atol=1e-4, rtol=1e-5)


def test_the_graphs_decode_with_one_class_and_more_candidates_than_anchors() -> None:
    outputs = HeadOutputs([level[:, ::3] for level in random_outputs().class_logits], random_outputs().box_regression)
    detector = build(classes=("a",), category_ids=(1,))
    found = detector.decode([], outputs, candidates=5000, image_size=(64, 96))
    count = sum(h * w * 9 for h, w in SHAPES)
    assert found.scores.shape == (2, count)
    assert not bool(found.labels.any())
    assert bool((found.scores[:, :-1] >= found.scores[:, 1:]).all())


def test_the_reference_decode_is_the_rules_written_out() -> None:
    outputs = random_outputs()
    found = build().reference_detections([], outputs, image_size=(64, 96), per_level=40, max_detections=30)
    for image in range(2):
        scores, boxes, sizes = all_pairs(outputs, image)
        parts = []
        for level_scores, level_boxes in zip(
            torch.split(scores, sizes.tolist()), torch.split(boxes, sizes.tolist()), strict=True
        ):
            best, pair = level_scores.flatten().topk(40)
            kept = best > 0.05
            parts.append((level_boxes[pair[kept] // 3], best[kept], pair[kept] % 3))
        all_boxes, all_scores, all_labels = (torch.cat(part) for part in zip(*parts, strict=True))
        full = (all_boxes[:, 2] > all_boxes[:, 0]) & (all_boxes[:, 3] > all_boxes[:, 1])
        all_boxes, all_scores, all_labels = all_boxes[full], all_scores[full], all_labels[full]
        kept = batched_nms(all_boxes, all_scores, all_labels, 0.5)[:30]
        torch.testing.assert_close(found[image][1], all_scores[kept])
        torch.testing.assert_close(found[image][0], all_boxes[kept], atol=1e-4, rtol=1e-5)
        assert torch.equal(found[image][2], all_labels[kept])
        one = found[image][2] == 0
        assert len(nms(found[image][0][one], found[image][1][one], 0.5)) == int(one.sum())


def test_the_loss_is_the_sum_written_out_in_numpy() -> None:
    outputs = random_outputs()
    boxes = torch.tensor([[[5.0, 5, 40, 44], [50, 10, 90, 60]], [[20.0, 8, 61, 40], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True], [True, False]])
    targets = Targets(boxes, torch.tensor([[2, 0], [1, 0]]), valid, torch.zeros(2, 2, dtype=torch.bool))
    loss = build().loss([], outputs, targets)
    anchors = grid_anchors(SHAPES, (8, 16, 32), [base_anchors(s, 4.0, 3, (0.5, 1.0, 2.0)) for s in (8, 16, 32)]).numpy()
    classification, regression, positives = 0.0, 0.0, 0
    for image in range(2):
        scores, _, _ = all_pairs(outputs, image)
        deltas = torch.cat([r[image].permute(1, 2, 0).reshape(-1, 4) for r in outputs.box_regression]).numpy()
        objects = boxes[image][valid[image]].numpy()
        overlap = np.array([[_iou(a, o) for o in objects] for a in anchors])
        best = overlap.max(axis=0)
        for n, anchor in enumerate(anchors):
            own = int(overlap[n].argmax())
            positive = overlap[n, own] >= 0.5 or any(overlap[n, o] == best[o] for o in range(len(objects)))
            if not positive and overlap[n, own] >= 0.4:
                continue
            for k in range(3):
                p = float(scores[n, k])
                hit = positive and k == int(targets.labels[image, own])
                classification += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
            if positive:
                positives += 1
                regression += np.abs(deltas[n] - _encode(objects[own], anchor)).sum()
    assert positives > 2
    assert float(loss["classification"]) == pytest.approx(classification / positives, rel=1e-4)
    assert float(loss["box"]) == pytest.approx(regression / positives, rel=1e-4)


def _iou(a: Any, b: Any) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return float(w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h))


def _encode(box: Any, anchor: Any) -> Any:
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    centre = [(box[0] + box[2] - anchor[0] - anchor[2]) / 2 / w, (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / h]
    return np.array([*centre, math.log((box[2] - box[0]) / w), math.log((box[3] - box[1]) / h)])


def test_the_loss_is_in_float32_under_autocast() -> None:
    detector = build()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    flags = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[4.0, 4, 40, 40]]]), torch.zeros(1, 1, dtype=torch.int64), flags, ~flags)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = detector.features(detector.normalize(images))
        loss = detector.loss(features, detector.head(features), targets)
    assert {term.dtype for term in loss.values()} == {torch.float32}


def test_multiply_accumulates_by_hand() -> None:
    detector = build(head_depth=0, levels=3)
    whole = multiply_accumulates(detector, (64, 64))
    places = 8 * 8 + 4 * 4 + 2 * 2
    head = places * 16 * 9 * (27 + 36)
    pyramid = sum(c * 16 * s for c, s in zip((16, 24, 32), (64, 16, 4), strict=True)) + places * 16 * 9 * 16
    stem = 32 * 32 * 3 * 49 * 8
    assert whole > head + pyramid + stem
    twice = multiply_accumulates(build(head_depth=0, levels=3, classes=("a",) * 6, category_ids=(1,) * 6), (64, 64))
    assert twice - whole == places * 16 * 9 * 27


def test_the_spec_survives_its_json() -> None:
    made = build(head_channels=24).spec
    assert RetinaNetSpec.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [("resnet81", "timm cannot make it"), ("vit_tiny_patch16_224", "strides")],
)
def test_a_backbone_that_is_none_is_named(backbone: str, sentence: str) -> None:
    with pytest.raises(WeightsError, match=f"backbone {backbone}.*{sentence}"):
        build(backbone=backbone, backbone_options={})
