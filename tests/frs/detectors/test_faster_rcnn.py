"""Faster R-CNN against torchvision's own parts with the same weights, and against mmdetection's rules written out."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, batched_nms, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frs.data import read_coco
from frs.detectors import (
    FasterRCNN,
    FasterRCNNSpec,
    HeadOutputs,
    Targets,
    load_detector,
    multiply_accumulates,
    save_detector,
)
from frs.detectors.fpn import FPN
from frs.detectors.matching import Matches, in_crowd
from frs.detectors.sampling import sample
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.export.torch_predictor import TorchPredictor
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets
from tests.frs.detectors.two_stage import V2, build, busy, torchvision_twin
from tests.frs.export.lab import pictures, randomise

HEIGHT, WIDTH = 96, 160  # P6's stride, 64, divides neither
IMAGES = pictures(2, HEIGHT, WIDTH)
Sets = list[tuple[Tensor, Tensor]]


def generated(seed: int = 0) -> Sets:
    """Boxes and labels of two images; some boxes small, two at one place."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    images = []
    for count in (9, 2):
        boxes = torch.minimum(random_boxes(count, seed + count, 60), limit)
        if count == 9:
            boxes[1, 2:] = boxes[1, :2] + 7.5
            boxes[3] = boxes[2] + 1.0
        images.append((torch.minimum(boxes, limit), torch.randint(0, 3, (count,), generator=generator)))
    return images


def real() -> Sets:
    """Annotations of COCO, brought to the size of the test's images."""
    folder = Path(os.environ["FRS_DATA"]) / "tiny_coco"
    data = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    found = []
    for image in data.images[:20]:
        scale = torch.tensor([WIDTH / image.width, HEIGHT / image.height]).repeat(2)
        boxes = torch.from_numpy(image.boxes[~image.crowd]) * scale
        if len(boxes):
            found.append((boxes, torch.from_numpy(image.labels[~image.crowd]) % 3))
    assert sum(len(boxes) for boxes, _ in found) > 80
    return found


generated_and_real = pytest.mark.parametrize(
    "sets",
    [
        generated,
        pytest.param(
            real,
            marks=pytest.mark.skipif(
                "FRS_DATA" not in os.environ, reason="FRS_DATA names no folder with COCO data sets"
            ),
        ),
    ],
)


def as_targets(sets: Sets) -> Targets:
    made = targets([boxes for boxes, _ in sets])
    for row, (_, labels) in zip(made.labels, sets, strict=True):
        row[: len(labels)] = labels
    return made


def as_torchvision(sets: Sets) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes, "labels": labels + 1} for boxes, labels in sets]


def images_of(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(pictures(count, HEIGHT, WIDTH, seed))


def answers(detector: FasterRCNN, images: Tensor) -> tuple[list[Tensor], HeadOutputs]:
    features = detector.features(detector.normalize(images))
    return features, detector.head(features)


def first(positive: Tensor, negative: Tensor, *, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """In place of a random sample, the first of each kind."""
    positive = positive & (positive.cumsum(dim=1) <= int(count * positive_fraction))
    return positive, negative & (negative.cumsum(dim=1) <= count - positive.sum(dim=1, keepdim=True))


class TorchvisionFirst:
    """The same for torchvision's labels: 0 negative, 1 and more positive."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count, self.positive_fraction = count, positive_fraction

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for each in labels:
            positive = (each >= 1).nonzero()[:, 0][: int(self.count * self.positive_fraction)]
            negative = (each == 0).nonzero()[:, 0][: self.count - len(positive)]
            for chosen, index in zip(found, (positive, negative), strict=True):
                chosen.append(torch.zeros_like(each, dtype=torch.uint8).index_fill(0, index, 1))
        return found


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


def test_anchors_are_torchvisions(detector: FasterRCNN) -> None:
    images = images_of(2)
    features, outputs = answers(detector, images)
    generator = torchvision_twin(detector, HEIGHT, WIDTH).rpn.anchor_generator
    expected = generator(ImageList(images, [(HEIGHT, WIDTH)] * 2), features)[0]
    ours = detector.rpn.anchors(outputs.class_logits, (HEIGHT, WIDTH))
    assert torch.equal(torch.cat(ours), expected)
    assert ours[-1][3:4, :2].add(ours[-1][3:4, 2:]).div(2).tolist() == [[53.0, 0.0]]  # 160 // 3, not 64


def test_mmdetections_anchors_lie_at_multiples_of_the_stride_and_are_not_rounded() -> None:
    anchors = build().rpn.anchors([torch.zeros(1, 3, 2, 3)] * 5, (HEIGHT, WIDTH))
    wide = 8 * 64 * math.sqrt(2)  # ratio 1/2: h = w / 2, and w * h = (8 * 64)^2
    expected = torch.tensor([64 - wide / 2, -wide / 4, 64 + wide / 2, wide / 4])
    torch.testing.assert_close(anchors[4][3], expected)


@generated_and_real
def test_rpn_assignment_is_torchvisions(sets: Any, detector: FasterRCNN) -> None:
    wanted = sets()
    _, outputs = answers(detector, images_of(1))
    anchors = torch.cat(detector.rpn.anchors(outputs.class_logits, (HEIGHT, WIDTH)))
    found = detector.rpn.match(anchors, as_targets(wanted))
    twin = torchvision_twin(detector, HEIGHT, WIDTH).rpn
    labels, boxes = twin.assign_targets_to_anchors([anchors] * len(wanted), as_torchvision(wanted))
    for i, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        assert torch.equal(found.positive[i], label == 1)
        assert torch.equal(found.negative[i], label == 0)
        positive = found.positive[i]
        assert torch.equal(wanted[i][0][found.box[i]][positive], box[positive])


def mmdetections_assignment(anchors: Tensor, boxes: Tensor) -> list[int]:
    """Of each anchor the object, -1 for none and -2 for what is neither (MaxIoUAssigner with 0.7, 0.3 and 0.3)."""
    overlap = box_iou(boxes, anchors).numpy()
    assigned = []
    for n in range(len(anchors)):
        most = int(overlap[:, n].argmax())
        assigned.append(most if overlap[most, n] >= 0.7 else -1 if overlap[most, n] < 0.3 else -2)
    for g in range(len(boxes)):
        best = overlap[g].max()
        if best >= 0.3:
            for n in np.flatnonzero(overlap[g] == best).tolist():
                assigned[n] = g
    return assigned


@generated_and_real
def test_rpn_assignment_is_mmdetections(sets: Any) -> None:
    wanted = sets()
    detector = build()
    anchors = torch.cat(detector.rpn.anchors([torch.zeros(1, 3, 24 // 2**i, 40 // 2**i) for i in range(5)], (96, 160)))
    found = detector.rpn.match(anchors, as_targets(wanted))
    positives = 0
    for i, (boxes, _) in enumerate(wanted):
        expected = torch.tensor(mmdetections_assignment(anchors, boxes))
        assert torch.equal(found.positive[i], expected >= 0)
        assert torch.equal(found.negative[i], expected == -1)
        assert torch.equal(found.box[i], expected.clamp(min=0))
        positives += int((expected >= 0).sum())
    assert positives > 5


def test_an_object_that_overlaps_no_anchor_by_much_finds_one_only_in_torchvision() -> None:
    tiny = as_targets([(torch.tensor([[50.0, 50, 56, 56]]), torch.tensor([0]))])
    for conventions, found in (("mmdet", False), ("torchvision", True)):
        made = build(conventions=conventions)
        anchors = torch.cat(made.rpn.anchors([torch.zeros(1, 3, 24 // 2**i, 40 // 2**i) for i in range(5)], (96, 160)))
        assert bool(made.rpn.match(anchors, tiny).positive.any()) is found


@generated_and_real
@pytest.mark.parametrize("options", [{}, V2], ids=["v1", "v2"])
def test_the_four_losses_are_torchvisions(sets: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same samples; in training mode, with BatchNorm over the samples."""
    wanted = sets()
    ours = busy(IMAGES, conventions="torchvision", **options).train()
    twin = torchvision_twin(ours, HEIGHT, WIDTH)
    for stage in ("rpn", "roi_head"):
        monkeypatch.setattr(f"frs.detectors.{stage}.sample", first)
    twin.rpn.fg_bg_sampler = TorchvisionFirst(256, 0.5)
    twin.roi_heads.fg_bg_sampler = TorchvisionFirst(512, 0.25)
    images = images_of(len(wanted))
    features, outputs = answers(ours, images)
    terms = ours.loss(features, outputs, as_targets(wanted))

    sizes = [(HEIGHT, WIDTH)] * len(wanted)
    named = OrderedDict(zip(("0", "1", "2", "3", "pool"), features, strict=True))
    given = as_torchvision(wanted)
    proposals, expected = twin.rpn(ImageList(images, sizes), named, given)
    _, second = twin.roi_heads(named, proposals, sizes, given)
    names = {
        "rpn_classification": expected["loss_objectness"],
        "rpn_box": expected["loss_rpn_box_reg"],
        "classification": second["loss_classifier"],
        "box": second["loss_box_reg"],
    }
    assert set(terms) == set(names)
    for name, value in names.items():
        assert float(value.detach()) > 0
        torch.testing.assert_close(terms[name], value, rtol=2e-4, atol=1e-6)


@torch.no_grad()
def test_mmdetections_losses_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with objects and one without: it counts as if it had a positive (SamplingResult of mmdetection 3)."""
    for stage in ("rpn", "roi_head"):
        monkeypatch.setattr(f"frs.detectors.{stage}.sample", first)
    detector = busy(IMAGES)
    boxes, labels = generated()[0]
    wanted = as_targets([(boxes, labels), (boxes[:0], labels[:0])])
    features, outputs = answers(detector, images_of(2))
    terms = detector.loss(features, outputs, wanted)

    anchors = torch.cat(detector.rpn.anchors(outputs.class_logits, (HEIGHT, WIDTH)))
    logits = torch.cat([o.permute(0, 2, 3, 1).reshape(2, -1) for o in outputs.class_logits], dim=1)
    deltas = torch.cat([o.permute(0, 2, 3, 1).reshape(2, -1, 4) for o in outputs.box_regression], dim=1)
    entropy, distance, counted = 0.0, 0.0, 0
    for image, assigned in enumerate([mmdetections_assignment(anchors, boxes), [-1] * len(anchors)]):
        positive = [n for n, a in enumerate(assigned) if a >= 0][:128]
        negative = [n for n, a in enumerate(assigned) if a == -1][: 256 - len(positive)]
        entropy += sum(math.log1p(math.exp(-float(logits[image, n]))) for n in positive)
        entropy += sum(math.log1p(math.exp(float(logits[image, n]))) for n in negative)
        distance += sum(l1(deltas[image, n], boxes[assigned[n]], anchors[n]) for n in positive)
        counted += max(len(positive), 1) + max(len(negative), 1)
    assert counted == 256 + 257
    assert float(terms["rpn_classification"]) == pytest.approx(entropy / counted, rel=1e-4)
    assert float(terms["rpn_box"]) == pytest.approx(distance / counted, rel=1e-4)

    proposals, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=2000, total=1000)
    entropy, distance, counted = 0.0, 0.0, 0
    for image, objects in enumerate((boxes, boxes[:0])):
        rois = torch.cat([proposals[image, present[image]], objects])
        overlap = box_iou(rois, objects) if len(objects) else torch.zeros(len(rois), 1)
        best, own = overlap.max(dim=1)
        positive = torch.nonzero(best >= 0.5)[:, 0].tolist()[:128]
        negative = torch.nonzero(best < 0.5)[:, 0].tolist()[: 512 - len(positive)]
        chosen = positive + negative
        cells = detector._pooled(features, rois[chosen], torch.full((len(chosen),), image))
        scores, codes = detector.roi_head(cells)
        label = torch.tensor([*(int(labels[own[n]]) for n in positive), *[3] * len(negative)])
        entropy -= float(scores.double().log_softmax(dim=1)[torch.arange(len(label)), label].sum())
        for row, n in enumerate(positive):
            stds = torch.tensor([0.1, 0.1, 0.2, 0.2])
            distance += l1(codes[row, label[row]], objects[own[n]], rois[n], stds)
        counted += len(chosen)
    assert distance > 0
    assert float(terms["classification"]) == pytest.approx(entropy / counted, rel=1e-4)
    assert float(terms["box"]) == pytest.approx(distance / counted, rel=1e-4)


def l1(delta: Tensor, box: Tensor, anchor: Tensor, stds: Tensor | None = None) -> float:
    size, own = anchor[2:] - anchor[:2], box[2:] - box[:2]
    coded = torch.cat([((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / size, (own / size).log()])
    return float((delta - coded / (1.0 if stds is None else stds)).abs().sum())


@pytest.mark.parametrize("total", [30, 1000])
def test_proposals_are_torchvisions(total: int, detector: FasterRCNN) -> None:
    images = images_of(3)
    features, outputs = answers(detector, images)
    twin = torchvision_twin(detector, HEIGHT, WIDTH).rpn
    twin._pre_nms_top_n["testing"], twin._post_nms_top_n["testing"] = 100, total
    named = OrderedDict(zip(("0", "1", "2", "3", "pool"), features, strict=True))
    expected, _ = twin(ImageList(images, [(HEIGHT, WIDTH)] * 3), named)
    boxes, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=100, total=total)
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


def test_the_graph_decodes_as_the_reference_does(detector: FasterRCNN) -> None:
    """With as many proposals and candidates as the reference has, the two selections are the same rule."""
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


def test_samples_keep_their_quotas() -> None:
    generator = torch.Generator().manual_seed(1)
    kind = torch.rand(4, 3000, generator=generator)
    positive = kind < torch.tensor([0.5, 0.01, 0.0, 0.9])[:, None]
    negative = (kind > 0.95) & torch.tensor([True, True, True, False])[:, None]
    torch.manual_seed(7)
    chosen = sample(positive, negative, count=100, positive_fraction=0.25)
    assert not bool((chosen[0] & ~positive).any())
    assert not bool((chosen[1] & ~negative).any())
    few = int(positive[1].sum())
    assert chosen[0].sum(dim=1).tolist() == [25, min(25, few), 0, 25]
    assert chosen[1].sum(dim=1).tolist() == [75, 100 - min(25, few), 100, 0]
    torch.manual_seed(7)
    again = sample(positive, negative, count=100, positive_fraction=0.25)
    assert torch.equal(again[0], chosen[0])
    other = sample(positive, negative, count=100, positive_fraction=0.25)
    assert not torch.equal(other[0], chosen[0])


def test_samples_are_even() -> None:
    """Each of 20 is drawn 5 times of 20: 400 draws give 100, with a deviation of 8.7."""
    torch.manual_seed(0)
    everything = torch.ones(400, 20, dtype=torch.bool)
    drawn = sample(everything, ~everything, count=20, positive_fraction=0.25)[0].sum(dim=0)
    assert int(drawn.sum()) == 2000
    assert 60 < int(drawn.min()) <= int(drawn.max()) < 140


@pytest.mark.parametrize("conventions", ["mmdet", "torchvision"])
def test_crowds_teach_neither_stage(conventions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(conventions=conventions)
    box, crowd = torch.tensor([[8.0, 8, 50, 50]]), torch.tensor([[60.0, 10, 160, 96]])
    wanted = targets([torch.cat([box, crowd])], [1])
    _, outputs = answers(detector, images_of(1))
    anchors = torch.cat(detector.rpn.anchors(outputs.class_logits, (HEIGHT, WIDTH)))
    covered = in_crowd(anchors, wanted)[0]
    matches: Matches = detector.rpn.match(anchors, wanted)
    assert bool(covered.any())
    assert not bool((matches.positive | matches.negative)[0, covered].any())
    assert bool(matches.positive[0].any())
    proposals, present = detector.rpn.proposals(outputs, (HEIGHT, WIDTH), per_level=2000, total=1000)
    samples = detector.roi_head.samples(proposals, present, wanted)
    inside = in_crowd(proposals, wanted)[0]
    assert bool(inside.any())
    drawn = {tuple(roi) for roi in samples.boxes.tolist()}
    assert not drawn & {tuple(roi) for roi in proposals[0, inside].tolist()}
    assert tuple(box[0].tolist()) in drawn
    assert set(samples.label.tolist()) == {0, 3}


@pytest.mark.parametrize("options", [{}, {**V2, "conventions": "torchvision"}])
def test_a_batch_without_a_box_trains(options: dict[str, Any]) -> None:
    detector = build(**options).train()
    features, outputs = answers(detector, images_of(2))
    empty = targets([torch.zeros(0, 4), torch.zeros(0, 4)])
    terms = detector.loss(features, outputs, empty)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert all(bool(term.isfinite()) for term in terms.values())
    assert float(terms["rpn_box"].detach()) == float(terms["box"].detach()) == 0.0
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_an_object_teaches_every_parameter() -> None:
    detector = busy(IMAGES).train()  # a new ResNet's last BatchNorms are zero
    features, outputs = answers(detector, images_of(2))
    torch.manual_seed(0)
    terms = detector.loss(features, outputs, as_targets(generated()))
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_the_loss_is_in_float32_under_autocast() -> None:
    detector = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, outputs = answers(detector, images_of(2))
        terms = detector.loss(features, outputs, as_targets(generated()))
    assert {term.dtype for term in terms.values()} == {torch.float32}


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
