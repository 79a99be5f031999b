"""RetinaNet by torchvision's conventions: anchors, losses and boxes are torchvision's own on the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet as TheirRetinaNet

from frs.detectors import HeadOutputs
from frs.detectors.dense import flatten
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets
from tests.frs.detectors.test_retinanet import build

SIZE, CLASSES = (160, 224), 3
SHAPES = [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]


class Nothing(nn.Module):
    """A backbone that is never run."""

    out_channels = 16


def theirs(box_loss: str) -> TheirRetinaNet:
    model = TheirRetinaNet(Nothing(), CLASSES)
    model.head.regression_head._loss_type = box_loss
    return model


def outputs(seed: int = 1) -> HeadOutputs:
    """Scores around 0.02, deltas so wide that some boxes leave the image and some are clamped or vanish."""
    random = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 27, *shape, generator=random) * 2 - 4 for shape in SHAPES]
    deltas = [torch.randn(2, 36, *shape, generator=random) * 1.5 for shape in SHAPES]
    return HeadOutputs([x.requires_grad_() for x in logits], [x.requires_grad_() for x in deltas])


def their_anchors(model: TheirRetinaNet, count: int = 2) -> list[Tensor]:
    images = ImageList(torch.zeros(count, 3, *SIZE), [SIZE] * count)
    anchors: list[Tensor] = model.anchor_generator(images, [torch.zeros(1, 1, *shape) for shape in SHAPES])
    return anchors


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
@pytest.mark.parametrize("second", [0, 5])
def test_losses_and_gradients(box_loss: str, second: int) -> None:
    ours, model, found = build(conventions="torchvision", box_loss=box_loss, levels=5), theirs(box_loss), outputs()
    boxes = [random_boxes(12, 3, 90), random_boxes(second, 4, 60)]
    wanted = targets(boxes)
    wanted.labels.copy_(torch.arange(wanted.labels.numel()).reshape(wanted.labels.shape) % CLASSES)
    losses = ours.loss([], found, wanted)

    head = {"cls_logits": flatten(found.class_logits, CLASSES), "bbox_regression": flatten(found.box_regression, 4)}
    theirs_wanted = [{"boxes": b, "labels": wanted.labels[i, : len(b)]} for i, b in enumerate(boxes)]
    expected = model.compute_loss(theirs_wanted, head, their_anchors(model))
    for name, their_name in (("classification", "classification"), ("box", "bbox_regression")):
        torch.testing.assert_close(losses[name], expected[their_name], atol=1e-6, rtol=1e-5)
    everything = [*found.class_logits, *found.box_regression]
    gradients = torch.autograd.grad(losses["classification"] + losses["box"], everything)
    their_gradients = torch.autograd.grad(sum(expected.values()), everything)
    assert any(bool(gradient.any()) for gradient in gradients)
    for gradient, their_gradient in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=1e-4)


def test_boxes() -> None:
    ours, model, found = build(conventions="torchvision", levels=5), theirs("l1"), outputs()
    with torch.no_grad():
        logits = [flatten([level], CLASSES) for level in found.class_logits]
        deltas = [flatten([level], 4) for level in found.box_regression]
        split = [list(a.split([level.shape[1] for level in deltas])) for a in their_anchors(model)]
        expected = model.postprocess_detections({"cls_logits": logits, "bbox_regression": deltas}, split, [SIZE] * 2)
        detections = ours.reference_detections([], found, image_size=SIZE, max_detections=300)
    for (boxes, scores, labels), want in zip(detections, expected, strict=True):
        assert len(boxes) == 300
        torch.testing.assert_close(boxes, want["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores, want["scores"])
        assert torch.equal(labels, want["labels"])
