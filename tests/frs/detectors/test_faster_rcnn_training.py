"""What teaches a Faster R-CNN, against torchvision's own parts with the same weights and mmdetection's rules written out."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from frs.detectors import FasterRCNN
from frs.detectors.matching import Matches, in_crowd
from frs.detectors.sampling import sample
from tests.frs.detectors.test_matching_and_losses import targets
from tests.frs.detectors.two_stage import (
    HEIGHT,
    IMAGES,
    V2,
    WIDTH,
    answers,
    as_targets,
    as_torchvision,
    build,
    busy,
    generated,
    generated_and_real,
    images_of,
    torchvision_twin,
)


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
