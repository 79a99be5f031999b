"""mmdetection's checkpoints, made by its rules: the features, answers and boxes that those rules give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

from frs.detectors import Detector, Targets, from_mmdet
from frs.detectors.fcos import FCOSOutputs
from tests.frs.detectors.published import mmdet_lab as lab
from tests.frs.detectors.published.lab import SIZES, assert_same, assert_same_boxes, images, normalised
from tests.frs.detectors.published.mmdet_lab import CLASSES, STRIDES, WIDTH, Mmdet, State
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets

Levels = list[Tensor]


@pytest.fixture(scope="module")
def body() -> State:
    return Mmdet().state


def begun(body: State) -> Mmdet:
    made = Mmdet.__new__(Mmdet)
    made.state, made.random = dict(body), torch.Generator().manual_seed(2)
    return made


def loaded(state: State, folder: Path, **facts: Any) -> Detector:
    torch.save({"meta": {}, "state_dict": state}, folder / "mmdet.pth")
    return from_mmdet(folder / "mmdet.pth", **facts)


def retinanet(body: State) -> State:
    made = begun(body)
    made.neck((512, 1024, 2048), (2048, WIDTH))
    made.towers(norm=False, bias=True)
    made.output("bbox_head.retina_cls", 9 * CLASSES, gain=0.6, mean=-4.0)
    made.output("bbox_head.retina_reg", 36, gain=0.5, mean=0.0)
    return made.state


def gfl(body: State) -> State:
    made = begun(body)
    made.neck((512, 1024, 2048), (WIDTH, WIDTH))
    made.towers(norm=True, bias=False)
    made.scales()
    made.output("bbox_head.gfl_cls", CLASSES, gain=1.0, mean=-3.0)
    made.output("bbox_head.gfl_reg", 68, gain=2.0, mean=0.0)
    made.state["bbox_head.integral.project"] = torch.arange(17.0)
    return made.state


def fcos(body: State, *, variant: bool) -> State:
    made = begun(body)
    made.neck((512, 1024, 2048), (WIDTH, WIDTH))
    made.towers(norm=True, bias=variant)
    made.scales()
    made.output("bbox_head.conv_cls", CLASSES, gain=1.0, mean=-2.0)
    made.output("bbox_head.conv_reg", 4, gain=0.5, mean=1.0 if variant else 2.5)
    made.output("bbox_head.conv_centerness", 1, gain=1.0, mean=1.0)
    return made.state


def faster_rcnn(body: State) -> State:
    made = begun(body)
    made.neck((256, 512, 1024, 2048), ())
    made.conv("rpn_head.rpn_conv", WIDTH, WIDTH)
    made.conv("rpn_head.rpn_cls", WIDTH, 3, 1)
    made.conv("rpn_head.rpn_reg", WIDTH, 12, 1, gain=0.3)
    made.linear("roi_head.bbox_head.shared_fcs.0", WIDTH * 49, 64)
    made.linear("roi_head.bbox_head.shared_fcs.1", 64, 64)
    made.linear("roi_head.bbox_head.fc_cls", 64, CLASSES + 1, gain=2.0)
    made.linear("roi_head.bbox_head.fc_reg", 64, CLASSES * 4)
    return made.state


def same_levels(ours: Levels, theirs: Levels) -> None:
    assert len(ours) == len(theirs) == 5
    for mine, their in zip(ours, theirs, strict=True):
        assert_same(mine, their)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_retinanet(body: State, tmp_path: Path, size: tuple[int, int]) -> None:
    state = retinanet(body)
    detector = loaded(state, tmp_path)
    x = normalised(images(size, 1))
    features = lab.neck(state, lab.backbone(state, x, caffe=False)[1:], on_input=True)
    classes = [lab.conv(state, "bbox_head.retina_cls", lab.tower(state, "cls", level)) for level in features]
    boxes = [lab.conv(state, "bbox_head.retina_reg", lab.tower(state, "reg", level)) for level in features]
    ours = detector.features(x)
    found = detector.head(ours)
    same_levels(ours, features)
    same_levels(found.class_logits, classes)
    same_levels(found.box_regression, boxes)

    anchors = [lab.retina_anchors(level, stride) for level, stride in zip(features, STRIDES, strict=True)]
    expected = lab.selected(
        [lab.flat(level, CLASSES).sigmoid() for level in classes],
        [lab.from_deltas(lab.flat(level, 4), anchor) for level, anchor in zip(boxes, anchors, strict=True)],
        size,
        0.5,
    )
    assert_same_boxes(detector.reference_detections(ours, found, image_size=size)[0], expected)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_gfl(body: State, tmp_path: Path, size: tuple[int, int]) -> None:
    state = gfl(body)
    detector = loaded(state, tmp_path)
    x = normalised(images(size, 1))
    features = lab.neck(state, lab.backbone(state, x, caffe=False)[1:])
    classes = [lab.conv(state, "bbox_head.gfl_cls", lab.tower(state, "cls", level)) for level in features]
    sides = [
        lab.conv(state, "bbox_head.gfl_reg", lab.tower(state, "reg", level)) * state[f"bbox_head.scales.{i}.scale"]
        for i, level in enumerate(features)
    ]
    ours = detector.features(x)
    found = detector.head(ours)
    same_levels(ours, features)
    same_levels(found.class_logits, classes)
    same_levels(found.box_regression, sides)

    boxes = []
    for level, stride in zip(sides, STRIDES, strict=True):
        distances = lab.flat(level, 17).softmax(dim=1) @ torch.arange(17.0)
        left, top, right, bottom = (distances.reshape(-1, 4) * stride).unbind(dim=1)
        px, py = lab.places(level, stride, 0).unbind(dim=1)
        boxes.append(torch.stack([px - left, py - top, px + right, py + bottom], dim=1))
    expected = lab.selected([lab.flat(level, CLASSES).sigmoid() for level in classes], boxes, size, 0.6)
    assert_same_boxes(detector.reference_detections(ours, found, image_size=size)[0], expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", [False, True])
@torch.no_grad()
def test_fcos_is_caffes_and_fed_bgr(body: State, tmp_path: Path, size: tuple[int, int], variant: bool) -> None:
    state = fcos(body, variant=variant)
    detector = loaded(state, tmp_path)
    pixels = images(size, 1)
    mean = (103.530, 116.280, 123.675) if variant else (102.9801, 115.9465, 122.7717)
    x = pixels[:, [2, 1, 0]].float() - torch.tensor(mean).reshape(1, 3, 1, 1)
    torch.testing.assert_close(detector.normalize(pixels), x)
    x = x / 60  # which the random numbers are made for
    features = lab.neck(state, lab.backbone(state, x, caffe=True)[1:], relu=True)
    class_towers = [lab.tower(state, "cls", level) for level in features]
    box_towers = [lab.tower(state, "reg", level) for level in features]
    classes = [lab.conv(state, "bbox_head.conv_cls", level) for level in class_towers]
    sides = [lab.conv(state, "bbox_head.conv_reg", level) for level in box_towers]
    central = [
        lab.conv(state, "bbox_head.conv_centerness", level) for level in (box_towers if variant else class_towers)
    ]
    ours = detector.features(x)
    found = detector.head(ours)
    assert isinstance(found, FCOSOutputs)
    same_levels(ours, features)
    same_levels(found.class_logits, classes)
    same_levels(found.centerness, central)
    scaled = [level * state[f"bbox_head.scales.{i}.scale"] for i, level in enumerate(sides)]
    if variant:
        distances = [level.clamp(min=0) * stride for level, stride in zip(scaled, STRIDES, strict=True)]
    else:
        distances = [level.exp() for level in scaled]
    same_levels(found.box_regression, distances)

    boxes = []
    for level, stride in zip(distances, STRIDES, strict=True):
        left, top, right, bottom = lab.flat(level, 4).unbind(dim=1)
        px, py = lab.places(level, stride, 0.5).unbind(dim=1)
        boxes.append(torch.stack([px - left, py - top, px + right, py + bottom], dim=1))
    scores = [lab.flat(level, CLASSES).sigmoid() for level in classes]
    expected = lab.selected(scores, boxes, size, 0.5, [lab.flat(level, 1)[:, 0].sigmoid() for level in central])
    assert_same_boxes(detector.reference_detections(ours, found, image_size=size)[0], expected)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_faster_rcnn(body: State, tmp_path: Path, size: tuple[int, int]) -> None:
    state = faster_rcnn(body)
    detector = loaded(state, tmp_path)
    x = normalised(images(size, 1))
    features = lab.neck(state, lab.backbone(state, x, caffe=False), pool=True)
    hidden = [F.relu(lab.conv(state, "rpn_head.rpn_conv", level)) for level in features]
    objects = [lab.conv(state, "rpn_head.rpn_cls", level) for level in hidden]
    deltas = [lab.conv(state, "rpn_head.rpn_reg", level) for level in hidden]
    ours = detector.features(x)
    found = detector.head(ours)
    same_levels(ours, features)
    same_levels(found.class_logits, objects)
    same_levels(found.box_regression, deltas)

    parts = []
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        half = torch.tensor([[1 / r**0.5, r**0.5] for r in (0.5, 1.0, 2.0)]) * 4 * stride
        centre = lab.places(objects[level], stride, 0)[:, None]
        anchors = torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4)
        score, order = lab.flat(objects[level], 1)[:, 0].sigmoid().sort(descending=True)
        order = order[:1000]
        box = lab.clipped(lab.from_deltas(lab.flat(deltas[level], 4)[order], anchors[order]), size)
        full = (box[:, 2:] > box[:, :2]).all(dim=1)
        parts.append((box[full], score[:1000][full], torch.full_like(order, level)[full]))
    rois, score, level_of = (torch.cat(part) for part in zip(*parts, strict=True))
    rois = rois[batched_nms(rois, score, level_of, 0.7)[:1000]]
    head = "roi_head.bbox_head"
    cells = lab.rois_pooled(features, rois).flatten(1)
    for i in range(2):
        name = f"{head}.shared_fcs.{i}"
        cells = F.relu(F.linear(cells, state[f"{name}.weight"], state[f"{name}.bias"]))
    scores = F.linear(cells, state[f"{head}.fc_cls.weight"], state[f"{head}.fc_cls.bias"]).softmax(dim=1)
    coded = F.linear(cells, state[f"{head}.fc_reg.weight"], state[f"{head}.fc_reg.bias"]).reshape(-1, CLASSES, 4)
    roi, label = (scores[:, :CLASSES] > 0.05).nonzero(as_tuple=True)
    box = lab.clipped(lab.from_deltas(coded[roi, label], rois[roi], (0.1, 0.1, 0.2, 0.2)), size)
    kept = batched_nms(box, scores[roi, label], label, 0.5)[:100]
    expected = box[kept], scores[roi, label][kept], label[kept]
    assert_same_boxes(detector.reference_detections(ours, found, image_size=size)[0], expected)


@torch.no_grad()
def test_retinanets_losses_are_mmdetections_written_out(body: State, tmp_path: Path) -> None:
    detector = loaded(retinanet(body), tmp_path)
    boxes = [random_boxes(9, 1, 60), random_boxes(4, 2, 60), torch.zeros(0, 4)]
    wanted: Targets = targets(boxes)
    wanted.labels.copy_(torch.arange(27).reshape(3, 9) * 2)
    features = detector.features(normalised(images((160, 224), 3)))
    outputs = detector.head(features)
    anchors = torch.cat([lab.retina_anchors(level, stride) for level, stride in zip(features, STRIDES, strict=True)])
    classification, distance, positives = 0.0, 0.0, 0
    for i, own in enumerate(boxes):
        logits = torch.cat([lab.flat(level[i : i + 1], CLASSES) for level in outputs.class_logits])
        deltas = torch.cat([lab.flat(level[i : i + 1], 4) for level in outputs.box_regression])
        assigned = np.zeros(len(anchors), dtype=int)
        if len(own):
            overlap = box_iou(own, anchors).numpy()
            best = overlap.max(axis=0)
            assigned = np.where(best >= 0.5, overlap.argmax(axis=0) + 1, np.where(best < 0.4, 0, -1))
            for number, row in enumerate(overlap):
                assigned[row == row.max()] = number + 1
        one_hot = torch.zeros_like(logits)
        found = torch.from_numpy(assigned > 0)
        objects = torch.from_numpy(assigned)[found] - 1
        one_hot[found, wanted.labels[i][objects]] = 1.0
        counts = torch.from_numpy(assigned >= 0)
        classification += float(sigmoid_focal_loss(logits[counts], one_hot[counts], reduction="sum"))
        anchor, box = anchors[found], own[objects]
        size = anchor[:, 2:] - anchor[:, :2]
        shift = ((box[:, :2] + box[:, 2:]) - (anchor[:, :2] + anchor[:, 2:])) / 2 / size
        coded = torch.cat([shift, ((box[:, 2:] - box[:, :2]) / size).log()], dim=1)
        distance += float((deltas[found] - coded).abs().sum())
        positives += max(int(found.sum()), 1)  # an image without one counts as one
    losses = detector.loss(features, outputs, wanted)
    assert float(losses["classification"]) == pytest.approx(classification / positives, rel=1e-4)
    assert float(losses["box"]) == pytest.approx(distance / positives, rel=1e-4)
