"""FCOS with torchvision's conventions, against torchvision's own functions on the same answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSHead

from frs.detectors.fcos import FCOSOutputs
from tests.frs.detectors.test_fcos import HEIGHT, SHAPES, WIDTH, build, clipped, random_outputs, targets


def torchvisions_view(outputs: FCOSOutputs) -> tuple[dict[str, Any], list[Tensor], list[int]]:
    """The same as torchvision's head answers, level by level; its anchors; points of each level."""

    def flat(levels: list[Tensor]) -> list[Tensor]:
        return [level.flatten(2).transpose(1, 2) for level in levels]

    anchors = []
    for stride, (height, width) in zip((8, 16, 32), SHAPES, strict=True):
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        middle = torch.stack([x, y, x, y], dim=-1).reshape(-1, 4)
        anchors.append(middle + torch.tensor([-0.5, -0.5, 0.5, 0.5]) * stride)
    answers = {
        "cls_logits": flat(outputs.class_logits),
        "bbox_regression": flat(outputs.box_regression),
        "bbox_ctrness": flat(outputs.centerness),
    }
    return answers, anchors, [len(level) for level in anchors]


def test_the_head_is_torchvisions() -> None:
    head = FCOSHead(32, 1, 3, num_convs=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    detector = build(conventions="torchvision", head_depth=2)
    own = {"class_tower": head.classification_head.conv, "class_output": head.classification_head.cls_logits}
    own |= {"box_tower": head.regression_head.conv, "box_output": head.regression_head.bbox_reg}
    own |= {"centerness_output": head.regression_head.bbox_ctrness}
    for name, part in own.items():
        getattr(detector, name).load_state_dict(part.state_dict())
    levels = [torch.randn(2, 32, *shape, generator=torch.Generator().manual_seed(5)) for shape in SHAPES]
    ours, _, _ = torchvisions_view(detector.head(levels))
    for name, theirs in head(levels).items():
        torch.testing.assert_close(torch.cat(ours[name], dim=1), theirs, msg=name)


def test_the_loss_and_its_gradients_are_torchvisions() -> None:
    outputs, wanted = random_outputs(1.0, "relu"), targets()
    inputs = [*outputs.class_logits, *outputs.box_regression, *outputs.centerness]
    for level in inputs:
        level.requires_grad_()
    annotations = [
        {"boxes": boxes[valid], "labels": labels[valid]}
        for boxes, labels, valid in zip(wanted.boxes, wanted.labels, wanted.valid, strict=True)
    ]
    answers, anchors, sizes = torchvisions_view(outputs)
    together = {name: torch.cat(levels, dim=1) for name, levels in answers.items()}
    model: Any = SimpleNamespace(center_sampling_radius=1.5, head=FCOSHead(32, 1, 3, num_convs=1))
    expected = FCOS.compute_loss(model, annotations, together, [torch.cat(anchors)] * 3, sizes)
    found = build(conventions="torchvision").loss([], outputs, wanted)
    names = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    assert set(found) == set(names)
    for ours, theirs in names.items():
        torch.testing.assert_close(found[ours], expected[theirs])
        for a, b in zip(
            torch.autograd.grad(found[ours], inputs, retain_graph=True, allow_unused=True),
            torch.autograd.grad(expected[theirs], inputs, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_reference_decode_is_torchvisions() -> None:
    outputs = random_outputs(1.0, "relu")
    answers, anchors, _ = torchvisions_view(outputs)
    model: Any = SimpleNamespace(
        score_thresh=0.2,
        topk_candidates=40,
        nms_thresh=0.6,
        detections_per_img=30,
        box_coder=BoxLinearCoder(normalize_by_size=True),
    )
    expected = FCOS.postprocess_detections(model, answers, [anchors] * 3, [(HEIGHT, WIDTH)] * 3)
    found = build(conventions="torchvision").reference_detections(
        [],
        outputs,
        image_size=(HEIGHT, WIDTH),
        score_threshold=0.2,
        per_level=40,
        iou_threshold=0.6,
        max_detections=30,
    )
    for (boxes, scores, labels), theirs in zip(found, expected, strict=True):
        assert len(boxes) == 30
        torch.testing.assert_close(boxes, theirs["boxes"])
        torch.testing.assert_close(scores, theirs["scores"])
        assert torch.equal(labels, theirs["labels"])


def test_the_graphs_decode_takes_torchvisions_root_and_points() -> None:
    outputs = random_outputs(1.0, "relu")
    answers, anchors, _ = torchvisions_view(outputs)
    found = build(conventions="torchvision").decode([], outputs, candidates=50, image_size=(HEIGHT, WIDTH))
    scores = (torch.cat(answers["cls_logits"], 1).sigmoid() * torch.cat(answers["bbox_ctrness"], 1).sigmoid()).sqrt()
    boxes = BoxLinearCoder(normalize_by_size=True).decode(
        torch.cat(answers["bbox_regression"], 1), torch.cat(anchors)[None]
    )
    for image in range(3):
        best, pair = scores[image].flatten().topk(50)
        torch.testing.assert_close(found.scores[image], best)
        torch.testing.assert_close(found.boxes[image], clipped(boxes[image])[pair // 3])
