"""torchvision's detectors (0.29), by name or from a file with their state dict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.models import get_model_weights

from frs.detectors.base import Detector
from frs.detectors.published.coco import COLUMNS, category_ids
from frs.detectors.published.reading import Checkpoint, Facts, Log, fill, log, read_checkpoint, read_tower
from frs.detectors.published.resnet import read_resnet
from frs.detectors.retinanet import RetinaNetSpec
from frs.detectors.spec import DetectorSpec
from frs.errors import WeightsError

NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
"""Of the published detectors; torchvision downloads their weights."""

FROZEN_EPS_0 = {
    "retinanet_resnet50_fpn": "eeacb38b",
}
"""Published before FrozenBatchNorm2d had an epsilon, and the beginning of their files' sha256."""

USUAL = Facts(
    norm_eps=1e-5,
    backbone_style="pytorch",
    channel_order="rgb",
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
)
"""What a file that does not say otherwise was trained with."""

BACKGROUND = COLUMNS[0]


def from_torchvision(
    name_or_path: str | Path,
    *,
    norm_eps: float | None = None,
    backbone_style: str | None = None,
    channel_order: str | None = None,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    log: Log = log,
) -> Detector:
    """A published detector by its name (one of `NAMES`, downloaded by torchvision), or from a file with a state dict.

    The class outputs stay as torchvision has them, the column of the background (0) and those that COCO does not use
    included; `with_classes` chooses among them. A file does not tell the facts that are arguments here (see `Facts`); left
    out they are `USUAL`, but for norm_eps, which is 0 for the two files that torchvision reads so: a name or the file's
    sha256 tells those. classes: names without the background, needed where there are not COCO's 91 columns. Raises
    WeightsError for a file that is no such detector.
    """
    facts = Facts(norm_eps, backbone_style, channel_order, pixel_mean, pixel_std, classes)
    if isinstance(name_or_path, str) and name_or_path in NAMES:
        checkpoint = _download(name_or_path)
        told = Facts(norm_eps=0.0) if name_or_path in FROZEN_EPS_0 else Facts()
    else:
        path = Path(name_or_path)
        checkpoint = read_checkpoint(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        told = Facts(norm_eps=0.0) if digest.startswith(tuple(FROZEN_EPS_0.values())) else Facts()
    settled = facts.over(told, USUAL, checkpoint.source, log)
    names = settled.pop("classes", None)
    spec, modules = _reader(checkpoint)(checkpoint, names, settled)
    return fill(spec, checkpoint, modules, log)


Read = tuple[DetectorSpec, dict[str, str]]


def _reader(checkpoint: Checkpoint) -> Callable[[Checkpoint, tuple[str, ...] | None, dict[str, Any]], Read]:
    """The family is known by the head's tensors."""
    if "head.classification_head.cls_logits.weight" in checkpoint.state:
        return _retinanet
    raise WeightsError(
        f"{checkpoint.source}: has no head of a torchvision detector that this project knows ({', '.join(NAMES)})"
    )


def _retinanet(checkpoint: Checkpoint, names: tuple[str, ...] | None, facts: dict[str, Any]) -> Read:
    head = "head.classification_head"
    classes = read_tower(checkpoint, f"{head}.conv.", "class_tower")
    boxes = read_tower(checkpoint, "head.regression_head.conv.", "box_tower")
    anchors = checkpoint.shape("head.regression_head.bbox_reg.weight")[0] // 4
    if anchors != 9:
        raise WeightsError(
            f"{checkpoint.source}: has {anchors} anchors at a place, and a state dict does not tell their sizes; only "
            "torchvision's usual 9 are known"
        )
    levels, pyramid = _pyramid(checkpoint)
    columns = checkpoint.shape(f"{head}.cls_logits.weight")[0] // anchors
    spec = RetinaNetSpec(
        **_columns(checkpoint, columns, names),
        backbone=read_resnet(checkpoint, "backbone.body."),
        fpn_channels=checkpoint.shape("backbone.fpn.extra_blocks.p7.weight")[0],
        levels=levels,
        head_channels=classes.channels,
        head_depth=classes.depth,
        head_norm=classes.norm,
        p6_source=_p6_source(checkpoint),
        relu_before_p7=True,
        conventions="torchvision",
        box_loss="l1" if classes.norm == "none" else "giou",  # as its first and its second version were trained
        **facts,
    )
    return spec, {
        "backbone.body.": "backbone.body.",
        **pyramid,
        **classes.names,
        **boxes.names,
        f"{head}.cls_logits": "class_output",
        "head.regression_head.bbox_reg": "box_output",
    }


def _pyramid(checkpoint: Checkpoint) -> tuple[int, dict[str, str]]:
    """Levels, and names. Before torchvision 0.15 a block was a convolution, and not a sequence with one in it."""
    blocks = "backbone.fpn.inner_blocks."
    maps = len({name.removeprefix(blocks).split(".")[0] for name in checkpoint.modules(blocks)})
    names = {"backbone.fpn.extra_blocks.p6": "fpn.extra.0", "backbone.fpn.extra_blocks.p7": "fpn.extra.1"}
    for i in range(maps):
        for end in ("", ".0"):
            names[f"backbone.fpn.inner_blocks.{i}{end}"] = f"fpn.lateral.{i}"
            names[f"backbone.fpn.layer_blocks.{i}{end}"] = f"fpn.output.{i}"
    return maps + 2, names


def _p6_source(checkpoint: Checkpoint) -> str:
    """Of as many channels as P7's own source, or the backbone's."""
    p6, p7 = (checkpoint.shape(f"backbone.fpn.extra_blocks.{level}.weight")[1] for level in ("p6", "p7"))
    return "p5" if p6 == p7 else "c5"


def _columns(checkpoint: Checkpoint, columns: int, names: tuple[str, ...] | None) -> dict[str, Any]:
    """classes and category_ids of a dense head with a column for the background."""
    if names is None:
        if columns != len(COLUMNS):
            raise WeightsError(
                f"{checkpoint.source}: has {columns} columns of classes, the background's among them, and not COCO's "
                f"{len(COLUMNS)}; say with `classes` which {columns - 1} they are"
            )
        return {"classes": COLUMNS, "category_ids": tuple(range(len(COLUMNS)))}
    if len(names) + 1 != columns:
        raise WeightsError(
            f"{checkpoint.source}: has {columns} columns of classes, the background's among them, so `classes` must name "
            f"{columns - 1}, and it names {len(names)}"
        )
    return {"classes": (BACKGROUND, *names), "category_ids": (0, *category_ids(names))}


def _download(name: str) -> Checkpoint:
    try:
        state = get_model_weights(name).COCO_V1.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib's, the hub's and the file system's
        url = get_model_weights(name).COCO_V1.url
        raise WeightsError(
            f"{name}: torchvision could not get its weights ({type(error).__name__}); without a network bring {url} here "
            "and give its path"
        ) from None
    return Checkpoint(name, dict(state), {})
