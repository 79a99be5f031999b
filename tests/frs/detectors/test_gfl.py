"""GFL against its paper's equations written out in numpy, number by number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from frs.detectors import GFL, GFLSpec, HeadOutputs, Targets, build_detector, load_detector, save_detector
from frs.detectors import gfl as module
from frs.detectors.build import parse_spec
from frs.distill.objective import DistillationObjective, DistillationWeights
from tests.frs.detectors.test_atss import iou, levels_of, owners
from tests.frs.detectors.test_gfl_losses import dfl_of, giou_loss_of, qfl_of, softmax

STRIDES = (8, 16, 32)
SHAPES = [(8, 12), (4, 6), (2, 3)]
CLASSES, BINS = 3, 9


def spec(**changes: Any) -> GFLSpec:
    fields: dict[str, Any] = {
        "classes": ("a", "b", "c"),
        "category_ids": (1, 5, 9),
        "backbone": "resnet18",
        "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8},
        "fpn_channels": 16,
        "levels": 3,
        "head_depth": 1,
        "reg_max": BINS - 1,
    }
    return GFLSpec(**{**fields, **changes})


def build(seed: int = 0, **changes: Any) -> GFL:
    torch.manual_seed(seed)
    built = build_detector(spec(**changes))
    assert isinstance(built, GFL)
    return built


def random_outputs(batch: int = 2, seed: int = 1, bins: int = BINS) -> HeadOutputs:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, CLASSES, *shape, generator=generator) * 2 - 2 for shape in SHAPES]
    regression = [torch.randn(batch, 4 * bins, *shape, generator=generator) * 2 for shape in SHAPES]
    return HeadOutputs(logits, regression)


def places(outputs: HeadOutputs, image: int) -> list[dict[str, Any]]:
    """All places in the order of the anchors: stride, centre in pixels, logits (K,), and the distributions' logits (4, R + 1)
    and expected distances (4,) in strides."""
    found = []
    for stride, logits, regression in zip(STRIDES, outputs.class_logits, outputs.box_regression, strict=True):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                sides = regression[image, :, y, x].double().numpy().reshape(4, -1)
                distances = [sum(n * p for n, p in enumerate(softmax(side))) for side in sides]
                found.append(
                    {
                        "stride": stride,
                        "centre": (x * stride, y * stride),
                        "logits": logits[image, :, y, x].double().numpy(),
                        "sides": sides,
                        "distances": distances,
                    }
                )
    return found


def box_of(place: dict[str, Any]) -> list[float]:
    (x, y), (left, top, right, bottom) = place["centre"], [d * place["stride"] for d in place["distances"]]
    return [x - left, y - top, x + right, y + bottom]


def clipped(box: list[float], height: int = 64, width: int = 96) -> list[float]:
    return [min(max(value, 0.0), limit) for value, limit in zip(box, (width, height) * 2, strict=True)]


def some_targets() -> Targets:
    boxes = torch.tensor([[[5.0, 5, 40, 44], [50, 10, 90, 60]], [[20.0, 8, 61, 40], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True], [True, False]])
    return Targets(boxes, torch.tensor([[2, 0], [1, 0]]), valid, torch.zeros_like(valid))


def no_targets(batch: int = 2) -> Targets:
    nothing = torch.zeros(batch, 0, dtype=torch.bool)
    return Targets(torch.zeros(batch, 0, 4), torch.zeros(batch, 0, dtype=torch.int64), nothing, nothing)


def test_shapes_and_strides_of_every_level() -> None:
    detector = build(levels=5, reg_max=16).eval()
    features = detector.features(detector.normalize(torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8)))
    outputs = detector.head(features)
    shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(f.shape) for f in features] == [(2, 16, *shape) for shape in shapes]
    assert [tuple(o.shape) for o in outputs.class_logits] == [(2, 3, *shape) for shape in shapes]
    assert [tuple(o.shape) for o in outputs.box_regression] == [(2, 68, *shape) for shape in shapes]


def test_the_pyramid_goes_on_from_p5_without_an_activation() -> None:
    detector = build(levels=5).eval()
    levels = detector.features(torch.randn(1, 3, 128, 192))
    p6, p7 = detector.fpn.extra
    torch.testing.assert_close(levels[3], p6(levels[2]))
    torch.testing.assert_close(levels[4], p7(levels[3]))
    assert bool((levels[3] < 0).any())


def test_towers_are_convolution_without_bias_group_norm_and_relu() -> None:
    detector = build(fpn_channels=64, head_channels=96, head_depth=2)
    for tower in (detector.class_tower, detector.box_tower):
        assert [type(layer) for layer in tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
        assert [layer.bias for layer in tower if isinstance(layer, nn.Conv2d)] == [None, None]
        assert [layer.num_groups for layer in tower if isinstance(layer, nn.GroupNorm)] == [32, 32]


def test_each_level_scales_its_distributions() -> None:
    detector = build().eval()
    features = detector.features(torch.randn(1, 3, 64, 64))
    before = detector.head(features)
    with torch.no_grad():
        for scale, value in zip(detector.scales, (0.5, 2.0, 3.0), strict=True):
            scale.fill_(value)
    after = detector.head(features)
    for plain, scaled, value in zip(before.box_regression, after.box_regression, (0.5, 2.0, 3.0), strict=True):
        torch.testing.assert_close(scaled, plain * value)
    for plain, scaled, alone in zip(
        before.class_logits, after.class_logits, detector.class_logits(features), strict=True
    ):
        assert torch.equal(plain, scaled)
        assert torch.equal(alone, scaled)


def test_a_new_detector_scores_everything_at_the_prior() -> None:
    detector = build().eval()
    outputs = detector.head(detector.features(detector.normalize(torch.zeros(1, 3, 64, 64))))
    for logits in outputs.class_logits:
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01), atol=2e-3, rtol=0.2)


@pytest.mark.parametrize("candidates", [1, 50, 200])
def test_the_graphs_decode_finds_the_best_pairs_of_all(candidates: int) -> None:
    outputs = random_outputs()
    found = build().decode([], outputs, candidates=candidates, image_size=(64, 96))
    for image in range(2):
        all_places = places(outputs, image)
        scores = torch.tensor(np.stack([1 / (1 + np.exp(-place["logits"])) for place in all_places])).float()
        boxes = torch.tensor([clipped(box_of(place)) for place in all_places]).float()
        best, pair = scores.flatten().topk(candidates)
        torch.testing.assert_close(found.scores[image], best)
        assert torch.equal(found.labels[image], pair % CLASSES)
        torch.testing.assert_close(found.boxes[image], boxes[pair // CLASSES], atol=1e-4, rtol=1e-5)


def test_decoding_is_in_float32_whatever_the_head_was_in() -> None:
    outputs = random_outputs()
    half = HeadOutputs([o.half() for o in outputs.class_logits], [o.half() for o in outputs.box_regression])
    rounded = half.float()
    a, b = (build().decode([], each, candidates=20, image_size=(64, 96)) for each in (half, rounded))
    assert a.boxes.dtype == torch.float32
    assert torch.equal(a.boxes, b.boxes)


def test_the_reference_decode_is_the_rules_written_out() -> None:
    outputs = random_outputs()
    found = build().reference_detections([], outputs, image_size=(64, 96), per_level=40, max_detections=30)
    for image in range(2):
        rows: list[tuple[list[float], float, int]] = []
        for stride in STRIDES:
            level = [place for place in places(outputs, image) if place["stride"] == stride]
            pairs = [
                (clipped(box_of(place)), 1 / (1 + math.exp(-logit)), label)
                for place in level
                for label, logit in enumerate(place["logits"])
            ]
            rows += [pair for pair in sorted(pairs, key=lambda pair: -pair[1])[:40] if pair[1] > 0.05]
        rows = [(box, score, label) for box, score, label in rows if box[2] > box[0] and box[3] > box[1]]
        boxes, scores, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        boxes, scores = boxes.float(), scores.float()
        kept = batched_nms(boxes, scores, labels, 0.6)[:30]
        assert len(kept) == 30
        torch.testing.assert_close(found[image][1], scores[kept])
        torch.testing.assert_close(found[image][0], boxes[kept], atol=1e-4, rtol=1e-5)
        assert torch.equal(found[image][2], labels[kept])


def covered(anchor: Any, crowds: Any) -> bool:
    """By more than half of its area."""
    for crowd in crowds:
        w = max(0.0, min(anchor[2], crowd[2]) - max(anchor[0], crowd[0]))
        h = max(0.0, min(anchor[3], crowd[3]) - max(anchor[1], crowd[1]))
        if w * h > 0.5 * (anchor[2] - anchor[0]) * (anchor[3] - anchor[1]):
            return True
    return False


def losses_written_out(outputs: HeadOutputs, targets: Targets, crowds: bool = False) -> tuple[dict[str, float], int]:
    """The terms by loops, and the number of positives, with an image without one counted as one."""
    qfl = giou = dfl = mass = 0.0
    count = 0
    anchors = [level.double().numpy() for level in levels_of(64, 96, STRIDES)]
    for image in range(len(targets.boxes)):
        objects = targets.boxes[image][targets.valid[image]].double().numpy()
        regions = targets.boxes[image][targets.ignore[image]].tolist() if crowds else []
        ignored = [covered(anchor, regions) for level in anchors for anchor in level]
        found = [-1 if crowd else owner for owner, crowd in zip(owners(anchors, objects), ignored, strict=True)]
        count += max(1, sum(owner >= 0 for owner in found))
        for place, owner, crowd in zip(places(outputs, image), found, ignored, strict=True):
            if crowd:
                continue
            quality = [0.0] * CLASSES
            if owner >= 0:
                stride = place["stride"]
                wanted = objects[owner] / stride
                box = [value / stride for value in box_of(place)]
                quality[int(targets.labels[image, owner])] = iou(box, wanted)
                weight = max(1 / (1 + math.exp(-logit)) for logit in place["logits"])
                x, y = place["centre"][0] / stride, place["centre"][1] / stride
                distances = [x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y]
                targets_of_sides = [min(max(d, 0.0), place["sides"].shape[1] - 1 - 0.1) for d in distances]
                giou += weight * giou_loss_of(box, wanted)
                dfl += weight * sum(map(dfl_of, place["sides"], targets_of_sides)) / 4
                mass += weight
            qfl += sum(qfl_of(float(logit), y) for logit, y in zip(place["logits"], quality, strict=True))
    mass = max(mass, 1.0)
    return {"classification": qfl / count, "box": 2 * giou / mass, "distribution": dfl / 4 / mass}, count


def test_the_loss_is_the_sum_written_out_in_numpy() -> None:
    outputs, targets = random_outputs(), some_targets()
    loss = build().loss([], outputs, targets)
    expected, count = losses_written_out(outputs, targets)
    assert count > 4
    assert {name: float(term) for name, term in loss.items()} == pytest.approx(expected, rel=1e-4)


def test_sides_out_of_reach_are_trained_on_the_last_bins() -> None:
    """With R = 2 the sides of the anchors themselves, four strides away, are."""
    outputs, targets = random_outputs(bins=3), some_targets()
    expected, _ = losses_written_out(outputs, targets)
    loss = build(reg_max=2).loss([], outputs, targets)
    assert {name: float(term) for name, term in loss.items()} == pytest.approx(expected, rel=1e-4)


def test_no_gradient_goes_through_what_is_a_target_or_a_weight() -> None:
    outputs = random_outputs()
    scores = [level.requires_grad_(True) for level in outputs.class_logits]
    boxes = [level.requires_grad_(True) for level in outputs.box_regression]
    loss = build().loss([], outputs, some_targets())
    assert torch.autograd.grad(loss["classification"], boxes, retain_graph=True, allow_unused=True) == (None,) * 3
    for name in ("box", "distribution"):
        assert torch.autograd.grad(loss[name], scores, retain_graph=True, allow_unused=True) == (None,) * 3
        assert all(bool(gradient.any()) for gradient in torch.autograd.grad(loss[name], boxes[:1], retain_graph=True))


def test_an_image_without_a_positive_counts_as_one() -> None:
    outputs, targets = random_outputs(3), some_targets()
    added = targets.map(lambda part: torch.cat([part, part.new_zeros(1, *part.shape[1:])]))
    loss = build().loss([], outputs, added)
    expected, count = losses_written_out(outputs, added)
    assert count == losses_written_out(random_outputs(2), targets)[1] + 1
    assert {name: float(term) for name, term in loss.items()} == pytest.approx(expected, rel=1e-4)


def test_what_a_crowd_covers_costs_nothing() -> None:
    outputs, targets = random_outputs(), some_targets()
    targets.valid[0, 1], targets.ignore[0, 1] = False, True
    targets.boxes[0, 1] = torch.tensor([24.0, 4.0, 95.0, 63.0])
    without = losses_written_out(outputs, targets)[1]
    expected, count = losses_written_out(outputs, targets, crowds=True)
    assert 2 < count < without
    loss = build().loss([], outputs, targets)
    assert {name: float(term) for name, term in loss.items()} == pytest.approx(expected, rel=1e-4)


def test_without_a_box_the_scores_alone_are_trained() -> None:
    detector = build(levels=5)
    features = detector.features(detector.normalize(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)))
    loss = detector.loss(features, detector.head(features), no_targets())
    assert float(loss["classification"].detach()) > 0
    assert float(loss["box"].detach()) == float(loss["distribution"].detach()) == 0
    torch.autograd.backward(torch.stack(list(loss.values())).sum())
    gradients = [parameter.grad for parameter in detector.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_both_divisors_are_agreed_on_by_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, asked = random_outputs(), []

    def twice(count: Tensor) -> Tensor:
        asked.append(count)
        return 2 * count.clamp(min=1.0)

    alone = build().loss([], outputs, some_targets())
    monkeypatch.setattr(module, "normaliser", twice)
    together = build().loss([], outputs, some_targets())
    for name, term in alone.items():
        torch.testing.assert_close(together[name], term / 2)
    build().loss([], outputs, no_targets())
    assert [count.shape for count in asked] == [(2,), (2,)]


def test_the_loss_is_in_float32_under_autocast() -> None:
    detector = build()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    flags = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[4.0, 4, 40, 40]]]), torch.zeros(1, 1, dtype=torch.int64), flags, ~flags)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = detector.features(detector.normalize(images))
        loss = detector.loss(features, detector.head(features), targets)
    assert {term.dtype for term in loss.values()} == {torch.float32}


def test_a_detector_comes_back_as_it_was(tmp_path: Path) -> None:
    detector = build(head_channels=24).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            nn.init.normal_(parameter)
    save_detector(tmp_path / "d.safetensors", detector)
    loaded = load_detector(tmp_path / "d.safetensors")
    assert loaded.spec == detector.spec
    for name, tensor in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("reg_max", [0, 65, 16.0, True, "16"])
def test_a_spec_that_nobody_could_have_asked_for_is_refused(reg_max: Any) -> None:
    assert parse_spec(spec(reg_max=64).to_json()) == spec(reg_max=64)
    with pytest.raises(ValueError, match="reg_max"):
        parse_spec(spec(reg_max=reg_max).to_json())


def test_another_gfl_teaches_it() -> None:
    student = build(seed=1)
    teacher = build(seed=2, backbone="resnet34", fpn_channels=24, head_channels=32, head_depth=2, reg_max=16)
    objective = DistillationObjective(student, teacher, DistillationWeights(alpha=1.0, beta=1.0, warmup_steps=0))
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    terms = objective.train()(images, some_targets(), 1)
    assert set(terms.parts) == {"classification", "box", "distribution", "frs_features", "frs_classes"}
    assert all(0 < float(part.detach()) < math.inf for part in terms.parts.values())
    torch.autograd.backward(terms.total)
    trained = dict(objective.named_parameters())
    # timm starts the last norm of a residual branch at 0, so that nothing before it has a gradient yet; a level without
    # a positive has none for its scale.
    unmoved = [n for n, p in trained.items() if p.grad is None or not bool(p.grad.any())]
    assert [name for name in unmoved if ".body.layer" not in name and ".scales." not in name] == []
    assert all(p.grad is None for p in teacher.parameters())
