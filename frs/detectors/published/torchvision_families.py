"""The families that torchvision has: names of their parts, and what their shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from frs.detectors.faster_rcnn import FasterRCNNSpec
from frs.detectors.fcos import FCOSSpec
from frs.detectors.published.coco import COLUMNS, category_ids
from frs.detectors.published.reading import Checkpoint, Log, read_tower
from frs.detectors.published.resnet import read_resnet
from frs.detectors.retinanet import RetinaNetSpec
from frs.detectors.spec import DetectorSpec
from frs.errors import WeightsError

_ANCHORS = 9
"""torchvision's own, of a RetinaNet's place: three sizes and three shapes."""

_CLASS_HEAD, _BOX_HEAD = "head.classification_head", "head.regression_head"

Read = tuple[DetectorSpec, Mapping[str, str], dict[str, Tensor]]
"""The detector, the checkpoint's names -> the detector's, and the checkpoint's tensors with their rows in our order."""


def read_family(checkpoint: Checkpoint, facts: Mapping[str, Any], log: Log) -> Read:
    """facts: fields of the spec, of which `classes` lacks the background, or is left out for COCO's.

    Raises WeightsError for a checkpoint of anything but a RetinaNet, an FCOS or a Faster R-CNN.
    """
    state = checkpoint.state
    if "roi_heads.box_predictor.cls_score.weight" in state:
        return _faster_rcnn(checkpoint, dict(facts), log)
    if f"{_BOX_HEAD}.bbox_ctrness.weight" in state:
        return _fcos(checkpoint, dict(facts))
    if f"{_CLASS_HEAD}.cls_logits.weight" in state:
        return _retinanet(checkpoint, dict(facts))
    raise WeightsError(
        f"{checkpoint.source}: has no head of torchvision's RetinaNet, FCOS or Faster R-CNN; for a file of mmdetection's "
        "write mmdet:"
    )


def _retinanet(checkpoint: Checkpoint, facts: dict[str, Any]) -> Read:
    anchors = checkpoint.shape(f"{_BOX_HEAD}.bbox_reg.weight")[0] // 4
    if anchors != _ANCHORS:
        raise WeightsError(
            f"{checkpoint.source}: has {anchors} anchors at a place, and a state dict does not tell their sizes; only "
            f"torchvision's usual {_ANCHORS} are known"
        )
    dense, names, normed, _ = _dense(checkpoint, facts, anchors)
    spec = RetinaNetSpec(
        **dense,
        head_norm="group" if normed else "none",
        box_loss="giou" if normed else "l1",  # as its second and its first version were trained
    )
    return spec, names, checkpoint.state


def _fcos(checkpoint: Checkpoint, facts: dict[str, Any]) -> Read:
    dense, names, normed, bias = _dense(checkpoint, facts, 1)
    spec = FCOSSpec(**dense, head_norm="group" if normed else "none", tower_bias=bias)
    return spec, {**names, f"{_BOX_HEAD}.bbox_ctrness": "centerness_output"}, checkpoint.state


def _dense(
    checkpoint: Checkpoint, facts: dict[str, Any], anchors: int
) -> tuple[dict[str, Any], dict[str, str], bool, bool]:
    """What RetinaNet and FCOS share: fields of the spec, names, and whether the towers have norms and biases."""
    classes = read_tower(checkpoint, f"{_CLASS_HEAD}.conv.", "class_tower")
    boxes = read_tower(checkpoint, f"{_BOX_HEAD}.conv.", "box_tower")
    columns = checkpoint.shape(f"{_CLASS_HEAD}.cls_logits.weight")[0] // anchors
    named = _names(checkpoint, columns, facts.pop("classes", None))
    # P6 is made of as many channels as P7, or of the backbone's.
    p6, p7 = (checkpoint.shape(f"backbone.fpn.extra_blocks.{level}.weight") for level in ("p6", "p7"))
    maps, pyramid = _pyramid(checkpoint)
    fields = {
        "classes": (COLUMNS[0], *named),
        "category_ids": (0, *_category_ids(named)),
        "backbone": read_resnet(checkpoint, "backbone.body."),
        "fpn_channels": p7[0],
        "levels": maps + 2,
        "head_channels": classes.channels,
        "head_depth": classes.depth,
        "p6_source": "p5" if p6[1] == p7[1] else "c5",
        "relu_before_p7": True,
        "conventions": "torchvision",
        **facts,
    }
    names = {
        **pyramid,
        "backbone.fpn.extra_blocks.p6": "fpn.extra.0",
        "backbone.fpn.extra_blocks.p7": "fpn.extra.1",
        **classes.names,
        **boxes.names,
        f"{_CLASS_HEAD}.cls_logits": "class_output",
        f"{_BOX_HEAD}.bbox_reg": "box_output",
    }
    return fields, names, classes.normed, classes.bias


def _faster_rcnn(checkpoint: Checkpoint, facts: dict[str, Any], log: Log) -> Read:
    head = "roi_heads.box_head"
    predictor = "roi_heads.box_predictor"
    columns, hidden = checkpoint.shape(f"{predictor}.cls_score.weight")
    named = _names(checkpoint, columns, facts.pop("classes", None))
    rpn = read_tower(checkpoint, "rpn.head.conv.", "rpn.tower")
    maps, names = _pyramid(checkpoint)
    names |= rpn.names
    names |= {"rpn.head.cls_logits": "rpn.class_output", "rpn.head.bbox_pred": "rpn.box_output"}
    names |= {f"{predictor}.cls_score": "roi_head.class_output", f"{predictor}.bbox_pred": "roi_head.box_output"}
    second = f"{head}.fc6.weight" not in checkpoint.state
    if second:
        names |= read_tower(checkpoint, f"{head}.", "roi_head.tower").names
        names |= {f"{head}.5": "roi_head.fc.0"}
    else:
        names |= {f"{head}.fc6": "roi_head.fc.0", f"{head}.fc7": "roi_head.fc.2"}
    spec = FasterRCNNSpec(
        classes=named,
        category_ids=_category_ids(named),
        backbone=read_resnet(checkpoint, "backbone.body."),
        fpn_channels=checkpoint.shape("rpn.head.cls_logits.weight")[1],
        levels=maps + 1,
        head_channels=rpn.channels,
        head_depth=rpn.depth,
        fpn_norm="batch" if "backbone.fpn.inner_blocks.0.1.weight" in checkpoint.state else "none",
        box_head="conv" if second else "fc",
        roi_channels=hidden,
        conventions="torchvision",
        **facts,
    )
    state = dict(checkpoint.state)
    for leaf in ("weight", "bias"):
        scores, boxes = state[f"{predictor}.cls_score.{leaf}"], state[f"{predictor}.bbox_pred.{leaf}"]
        state[f"{predictor}.cls_score.{leaf}"] = torch.cat([scores[1:], scores[:1]])  # our background is the last
        state[f"{predictor}.bbox_pred.{leaf}"] = boxes[4:]
    log(f"{checkpoint.source}: {predictor}.bbox_pred: the 4 rows of the background, which has no box, are left out")
    return spec, names, state


def _pyramid(checkpoint: Checkpoint) -> tuple[int, dict[str, str]]:
    """Maps of the backbone, and names, the backbone's included. Files of before torchvision 0.13 have a convolution where
    there is a sequence with one now."""
    blocks = "backbone.fpn.inner_blocks."
    maps = len({name.removeprefix(blocks).split(".")[0] for name in checkpoint.modules(blocks)})
    normed = f"{blocks}0.1.weight" in checkpoint.state
    names = {"backbone.body.": "backbone.body."}
    for theirs, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
        for i in range(maps):
            if normed:
                names[f"backbone.fpn.{theirs}.{i}."] = f"fpn.{ours}.{i}."
            else:
                names[f"backbone.fpn.{theirs}.{i}"] = names[f"backbone.fpn.{theirs}.{i}.0"] = f"fpn.{ours}.{i}"
    return maps, names


def _names(checkpoint: Checkpoint, columns: int, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Of all columns but the background's."""
    if names is None and columns == len(COLUMNS):
        return COLUMNS[1:]
    has = f"{checkpoint.source}: has {columns} columns of classes, the background's among them"
    if names is None:
        raise WeightsError(f"{has}, and not COCO's {len(COLUMNS)}; say with `classes` which {columns - 1} they are")
    if len(names) + 1 != columns:
        raise WeightsError(f"{has}, so `classes` must name {columns - 1}, and it names {len(names)}")
    return names


def _category_ids(names: tuple[str, ...]) -> tuple[int, ...]:
    """torchvision's columns are COCO's ids."""
    return tuple(range(1, len(COLUMNS))) if names == COLUMNS[1:] else category_ids(names)
