"""FCOS, with mmdetection's conventions held against its rules written out; torchvision's: test_fcos_torchvision.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

import frs.distributed
from frs.detectors import FCOS, FCOSSpec, Targets, build_detector, load_detector, save_detector
from frs.detectors.fcos import FCOSOutputs
from frs.distill.objective import DistillationObjective, DistillationWeights
from tests.frs.detectors.test_matching_and_losses import targets as without_classes
from tests.frs.detectors.test_points import mmdetections, scattered

SHAPES = [(16, 24), (8, 12), (4, 6)]
HEIGHT, WIDTH = 128, 192
CELLS = [
    (x * stride, y * stride, (x + 1) * stride, (y + 1) * stride)
    for stride, (height, width) in zip((8, 16, 32), SHAPES, strict=True)
    for y in range(height)
    for x in range(width)
]
"""mmdetection's points are the middles of these."""
VARIANTS: list[dict[str, Any]] = [
    {},
    {"box_activation": "scaled_relu", "box_loss": "giou", "center_sampling": 1.5, "centerness_on": "regression"},
]


def spec(**changes: Any) -> FCOSSpec:
    fields: dict[str, Any] = {
        "classes": ("a", "b", "c"),
        "category_ids": (1, 5, 9),
        "backbone": "resnet18",
        "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8},
        "fpn_channels": 32,
        "levels": 3,
        "head_depth": 1,
    }
    return FCOSSpec(**{**fields, **changes})


def build(**changes: Any) -> FCOS:
    torch.manual_seed(0)
    built = build_detector(spec(**changes))
    assert isinstance(built, FCOS)
    for i, scale in enumerate(built.scales):
        torch.nn.init.constant_(scale, 0.9 + 0.1 * i)
    return built


def random_outputs(middle: float, activation: str | None = "exp") -> FCOSOutputs:
    """For three images, as the head answers. middle: of the regression."""
    generator = torch.Generator().manual_seed(1)
    drawn = [[torch.randn(3, n, *shape, generator=generator) for shape in SHAPES] for n in (3, 4, 1)]
    sides = [0.7 * x + middle for x in drawn[1]]
    if activation != "relu":
        sides = [(0.9 + 0.1 * i) * x for i, x in enumerate(sides)]
    if activation == "exp":
        sides = [x.exp() for x in sides]
    else:
        sides = [x.clamp(min=0) * (8 * 2**i if activation == "scaled_relu" else 1) for i, x in enumerate(sides)]
    return FCOSOutputs([2 * x - 2 for x in drawn[0]], sides, drawn[2])


def targets(count: int = 8) -> Targets:
    made = without_classes([scattered(count, 3, HEIGHT, WIDTH), scattered(2, 4, HEIGHT, WIDTH), torch.zeros(0, 4)])
    made.labels[:] = torch.arange(count) % 3
    return made


def written_out(outputs: FCOSOutputs, image: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """mmdetection's class scores (N, K), centerness (N,) and boxes (N, 4), not clipped; points of each level."""
    scores, central, boxes = [], [], []
    for level, (height, width) in enumerate(SHAPES):
        stride = 8 * 2**level
        for y in range(height):
            for x in range(width):
                scores.append(outputs.class_logits[level][image, :, y, x].sigmoid())
                central.append(outputs.centerness[level][image, 0, y, x].sigmoid())
                left, top, right, bottom = map(float, outputs.box_regression[level][image, :, y, x])
                px, py = (x + 0.5) * stride, (y + 0.5) * stride
                boxes.append(torch.tensor([px - left, py - top, px + right, py + bottom]))
    return torch.stack(scores), torch.stack(central), torch.stack(boxes), [h * w for h, w in SHAPES]


def clipped(boxes: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))


@pytest.mark.parametrize("variant", VARIANTS, ids=["paper", "normbbox"])
def test_the_loss_is_mmdetections_written_out(variant: dict[str, Any]) -> None:
    detector, wanted = build(**variant), targets()
    outputs = random_outputs(3.0 if not variant else 1.0, detector.spec.box_activation)
    classification, box_sum, entropy, mass, positives = 0.0, 0.0, 0.0, 0.0, 0
    cells = np.array(CELLS, dtype=float)
    for image in range(3):
        scores, central, boxes, _ = written_out(outputs, image)
        truth = wanted.boxes[image][wanted.valid[image]].double().numpy()
        owners = mmdetections(truth, cells, detector.spec.center_sampling or 0.0, last=32)
        for n, own in enumerate(owners):
            for k in range(3):
                p = float(scores[n, k])
                hit = own >= 0 and k == int(wanted.labels[image, own])
                classification -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
            if own >= 0:
                x, y = (cells[n, 0] + cells[n, 2]) / 2, (cells[n, 1] + cells[n, 3]) / 2
                sides = x - truth[own, 0], truth[own, 2] - x, y - truth[own, 1], truth[own, 3] - y
                centred = math.sqrt(min(sides[:2]) / max(sides[:2]) * min(sides[2:]) / max(sides[2:]))
                positives, mass = positives + 1, mass + centred
                box_sum += centred * box_error(boxes[n].double().numpy(), truth[own], detector.spec.box_loss)
                p = float(central[n])
                entropy -= centred * math.log(p) + (1 - centred) * math.log(1 - p)
    assert positives > 20
    loss = detector.loss([], outputs, wanted)
    assert float(loss["classification"].detach()) == pytest.approx(classification / positives, rel=1e-4)
    assert float(loss["box"].detach()) == pytest.approx(box_sum / mass, rel=1e-4)
    assert float(loss["centerness"].detach()) == pytest.approx(entropy / positives, rel=1e-4)


def box_error(a: Any, b: Any, kind: str | None) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    if kind == "iou":
        return -math.log(max(shared / union, 1e-6))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return float(1 - shared / union + (hull - union) / hull)


def test_one_object_seen_off_its_centre_weighs_as_much_as_any() -> None:
    """A point with 3, 3, 3 and 1.5 px to the sides: the centerness, below 1, is divided by itself."""
    outputs = random_outputs(0.7)
    truth = torch.tensor([[1.0, 1, 7, 5.5]])
    loss = build().loss([], outputs, without_classes([truth, torch.zeros(0, 4), torch.zeros(0, 4)]))
    _, central, boxes, _ = written_out(outputs, 0)
    assert float(loss["box"].detach()) == pytest.approx(
        box_error(boxes[0].tolist(), truth[0].tolist(), "iou"), rel=1e-4
    )
    wanted, found = math.sqrt(0.5), float(central[0])
    entropy = -wanted * math.log(found) - (1 - wanted) * math.log(1 - found)
    assert float(loss["centerness"].detach()) == pytest.approx(entropy, rel=1e-4)


def test_what_a_crowd_region_covers_teaches_nothing() -> None:
    outputs, wanted = random_outputs(2.0), targets()
    wanted.boxes[1, 2], wanted.ignore[1, 2] = torch.tensor([0.0, 0, 100, 120]), True
    for level in outputs.class_logits:
        level.requires_grad_()
    gradients = torch.autograd.grad(build().loss([], outputs, wanted)["classification"], outputs.class_logits)
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[:15, :12] = True  # and a half of the next column, no more
    assert torch.equal((gradients[0][1] == 0).all(dim=0), expected)
    assert bool(gradients[0][0].all())


def test_the_reference_decode_is_mmdetections_written_out() -> None:
    """Threshold and ranking by the class alone, then times centerness; boxes without area go before NMS."""
    detector, outputs = build(**VARIANTS[1]), random_outputs(0.8, "scaled_relu")
    found = detector.reference_detections(
        [], outputs, image_size=(HEIGHT, WIDTH), score_threshold=0.1, per_level=60, max_detections=40
    )
    dropped = 0
    for image in range(3):
        scores, central, boxes, sizes = written_out(outputs, image)
        parts = []
        for own, middle, place in zip(
            scores.split(sizes), central.split(sizes), clipped(boxes).split(sizes), strict=True
        ):
            best, pair = own.flatten().topk(min(60, own.numel()))
            pair, best = pair[best > 0.1], best[best > 0.1]
            parts.append((place[pair // 3], best * middle[pair // 3], pair % 3))
        all_boxes, all_scores, all_labels = (torch.cat(part) for part in zip(*parts, strict=True))
        full = (all_boxes[:, 2] > all_boxes[:, 0]) & (all_boxes[:, 3] > all_boxes[:, 1])
        dropped += int((~full).sum())
        all_boxes, all_scores, all_labels = all_boxes[full], all_scores[full], all_labels[full]
        kept = batched_nms(all_boxes, all_scores, all_labels, 0.5)[:40]
        torch.testing.assert_close(found[image][1], all_scores[kept])
        torch.testing.assert_close(found[image][0], all_boxes[kept], atol=1e-3, rtol=1e-5)
        assert torch.equal(found[image][2], all_labels[kept])
    assert dropped


@pytest.mark.parametrize("variant", VARIANTS, ids=["paper", "normbbox"])
@pytest.mark.parametrize("candidates", [1, 70])
def test_the_graphs_decode_finds_the_best_final_scores(candidates: int, variant: dict[str, Any]) -> None:
    detector = build(**variant)
    outputs = random_outputs(2.0, detector.spec.box_activation)
    found = detector.decode([], outputs, candidates=candidates, image_size=(HEIGHT, WIDTH))
    for image in range(3):
        scores, central, boxes, _ = written_out(outputs, image)
        best, pair = (scores * central[:, None]).flatten().topk(candidates)
        torch.testing.assert_close(found.scores[image], best)
        assert torch.equal(found.labels[image], pair % 3)
        torch.testing.assert_close(found.boxes[image], clipped(boxes)[pair // 3], atol=1e-3, rtol=1e-5)


def test_what_the_conventions_build() -> None:
    names = set(build().state_dict())
    assert {"class_tower.0.weight", "class_tower.1.weight", "scales.0", "scales.2"} <= names
    assert not {"class_tower.0.bias", "box_tower.0.bias"} & names
    assert "class_tower.0.bias" in build(head_norm="none").state_dict()
    assert "box_tower.0.bias" in build(tower_bias=True).state_dict()
    theirs = build(conventions="torchvision")
    assert "box_tower.0.bias" in theirs.state_dict()
    assert not len(theirs.scales)
    assert theirs.spec.center_sampling == 1.5
    assert build(conventions="torchvision", center_sampling=0.0).spec.center_sampling == 0.0


@pytest.mark.parametrize(("on", "tower"), [(None, "class_tower"), ("regression", "box_tower")])
def test_centerness_stands_on_the_tower_that_is_asked_for(on: str | None, tower: str) -> None:
    detector = build(centerness_on=on)
    levels = [torch.randn(2, 32, *shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    found = detector.head(levels)
    for level, answer in zip(levels, found.centerness, strict=True):
        assert torch.equal(answer, detector.centerness_output(getattr(detector, tower)(level)))
    for alone, both in zip(detector.class_logits(levels), found.class_logits, strict=True):
        assert torch.equal(alone, both)


def test_a_new_detector_scores_every_class_at_the_prior() -> None:
    detector = build().eval()
    outputs = detector.head(detector.features(detector.normalize(torch.zeros(1, 3, 64, 64))))
    for logits in outputs.class_logits:
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), atol=2e-3, rtol=0.2)


@pytest.mark.parametrize("conventions", ["mmdet", "torchvision"])
@pytest.mark.parametrize("count", [0, 4])
def test_a_batch_without_objects_trains_everything(conventions: str, count: int) -> None:
    """With no box at all, and with crowd regions alone; under autocast, whose precision is not the losses'."""
    detector = build(conventions=conventions)
    wanted = without_classes([scattered(count, 1, 64, 64), torch.zeros(0, 4)], [count, 0])
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = detector.features(detector.normalize(images))
        loss = detector.loss(features, detector.head(features), wanted)
    assert {term.dtype for term in loss.values()} == {torch.float32}
    assert float(loss["box"].detach()) == float(loss["centerness"].detach()) == 0
    torch.autograd.backward(torch.stack(list(loss.values())).sum())
    gradients = {name: parameter.grad for name, parameter in detector.named_parameters()}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert bool(gradients["class_output.weight"].any())  # type: ignore[union-attr]


@pytest.mark.parametrize("conventions", ["mmdet", "torchvision"])
def test_two_ranks_are_one_process_with_all_images(conventions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are averaged over ranks, so the mean of the ranks' losses must be the loss of the whole batch."""
    detector, wanted = build(conventions=conventions), targets()
    outputs = random_outputs(2.0, detector.spec.box_activation)
    whole = detector.loss([], outputs, wanted)

    def rank(own: slice) -> dict[str, Tensor]:
        parts = FCOSOutputs(
            [level[own] for level in outputs.class_logits],
            [level[own] for level in outputs.box_regression],
            [level[own] for level in outputs.centerness],
        )
        held = Targets(wanted.boxes[own], wanted.labels[own], wanted.valid[own], wanted.ignore[own])
        return detector.loss([], parts, held)

    counted: list[Tensor] = []
    others: list[Tensor] = []

    def all_reduce(total: Tensor) -> None:
        counted.append(total.clone())
        if others:
            total += others.pop(0)

    monkeypatch.setattr(frs.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    slices = slice(0, 1), slice(1, 3)
    rank(slices[1])
    others[:] = counted
    counted.clear()
    first = rank(slices[0])
    others[:] = counted
    second = rank(slices[1])
    for name, term in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, term)


def test_a_detector_comes_back_as_it_was(tmp_path: Path) -> None:
    detector = build(conventions="torchvision", box_activation="scaled_relu", head_channels=64)
    save_detector(tmp_path / "d.safetensors", detector)
    loaded = load_detector(tmp_path / "d.safetensors")
    assert isinstance(loaded, FCOS)
    assert loaded.spec == detector.spec
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in detector.state_dict().items())
    assert FCOSSpec.from_json(spec().to_json()) == spec()


@pytest.mark.parametrize(
    "changes",
    [
        {"conventions": "detectron"}, {"conventions": ["mmdet"]}, {"head_norm": "batch"}, {"p6_source": "p6"},
        {"centerness_on": "both"}, {"centerness_on": ""}, {"box_activation": "linear"}, {"box_loss": "l1"},
        {"center_sampling": -1}, {"center_sampling": "1.5"}, {"center_sampling": True}, {"tower_bias": 1},
        {"relu_before_p7": "yes"}, {"octaves": 3}, {"head_depth": 9},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        FCOSSpec.from_json(json.dumps({**json.loads(spec().to_json()), **changes}))


def test_it_distils_between_detectors_of_other_shapes() -> None:
    student = build(backbone="mobilenetv3_small_050", backbone_options={}, fpn_channels=16, head_channels=24)
    teacher = build(conventions="torchvision", head_depth=2, head_channels=48)
    objective = DistillationObjective(student, teacher, DistillationWeights(alpha=1.0, beta=1.0, warmup_steps=0))
    images = torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    terms = objective.train()(images, targets(), 1)
    assert set(terms.parts) == {"classification", "box", "centerness", "frs_features", "frs_classes"}
    assert all(0 < float(value.detach()) < math.inf for value in terms.parts.values())
    torch.autograd.backward(terms.total)
    trained = dict(objective.named_parameters())
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in trained.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())
