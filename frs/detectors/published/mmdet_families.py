"""The families of mmdetection: names of their parts, and what shapes and configuration tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frs.detectors.faster_rcnn import FasterRCNNSpec
from frs.detectors.fcos import FCOSSpec
from frs.detectors.gfl import ANCHOR_SCALE, GFLSpec
from frs.detectors.published.config_text import look_up
from frs.detectors.published.reading import Checkpoint, Facts, Tower, read_tower
from frs.detectors.published.resnet import read_resnet
from frs.detectors.retinanet import RetinaNetSpec
from frs.detectors.spec import DetectorSpec
from frs.errors import WeightsError

_MARKS = {
    "bbox_head.retina_cls.weight": "retinanet",
    "bbox_head.gfl_cls.weight": "gfl",
    "bbox_head.conv_centerness.weight": "fcos",
    "bbox_head.fcos_centerness.weight": "fcos",
    "rpn_head.rpn_cls.weight": "faster_rcnn",
}
"""A tensor that only this family has."""

_TYPES = {"RetinaNet": "retinanet", "GFL": "gfl", "FCOS": "fcos", "FasterRCNN": "faster_rcnn"}
"""model.type in the configuration."""

_IMAGENET = Facts(
    norm_eps=1e-5,
    backbone_style="pytorch",
    channel_order="rgb",
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
)

Read = tuple[DetectorSpec, Mapping[str, str]]
"""The detector, and the checkpoint's names -> the detector's."""


def family_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str:
    """By its tensors, which the configuration must not contradict. Raises WeightsError."""
    if any("conv_offset" in name for name in checkpoint.state):
        raise WeightsError(f"{checkpoint.source}: has deformable convolutions, which no detector of ours has")
    families = {family for mark, family in _MARKS.items() if mark in checkpoint.state}
    if len(families) != 1:
        raise WeightsError(
            f"{checkpoint.source}: has no head of mmdetection's {', '.join(_TYPES)}; for a file of torchvision's write "
            "torchvision:"
        )
    (family,) = families
    kind = look_up(config, "model.type")
    if kind is not None and _TYPES.get(kind) != family:
        raise WeightsError(f"{checkpoint.source}: its tensors are of a {family}, its configuration is of a {kind}")
    return family


def usual(checkpoint: Checkpoint, family: str) -> Facts:
    """What mmdetection's published model of the family was trained with; its FCOS on backbones of Caffe's."""
    if family != "fcos":
        return _IMAGENET
    mean = (103.53, 116.28, 123.675) if _fcos_variant(checkpoint) else (102.9801, 115.9465, 122.7717)
    return Facts(norm_eps=1e-5, backbone_style="caffe", channel_order="bgr", pixel_mean=mean, pixel_std=(1.0, 1.0, 1.0))


def read_family(family: str, checkpoint: Checkpoint, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Read:
    """facts: fields of the spec. Raises WeightsError for what the detector of ours cannot be."""
    read = {"retinanet": _retinanet, "gfl": _gfl, "fcos": _fcos, "faster_rcnn": _faster_rcnn}
    return read[family](checkpoint, config, dict(facts))


def _retinanet(checkpoint: Checkpoint, config: Mapping[str, Any], facts: dict[str, Any]) -> Read:
    fields, names, towers = _dense(checkpoint, config, relu_before_p7=False)
    _expect(checkpoint, config, "model.bbox_head.bbox_coder.target_stds", (1.0, 1.0, 1.0, 1.0))
    anchors = {
        "anchor_scale": float(_told(config, "model.bbox_head.anchor_generator.octave_base_scale", 4.0)),
        "octaves": _told(config, "model.bbox_head.anchor_generator.scales_per_octave", 3),
        "ratios": _told(config, "model.bbox_head.anchor_generator.ratios", (0.5, 1.0, 2.0)),
    }
    spec = RetinaNetSpec(**fields, **anchors, head_norm="group" if towers.normed else "none", **facts)
    found = checkpoint.shape("bbox_head.retina_reg.weight")[0] // 4
    if found != spec.anchors_per_location:
        raise WeightsError(
            f"{checkpoint.source}: has {found} anchors at a place, its configuration or mmdetection's usual one has "
            f"{spec.anchors_per_location} ({spec.octaves} octaves, ratios {spec.ratios})"
        )
    return spec, {**names, "bbox_head.retina_cls": "class_output", "bbox_head.retina_reg": "box_output"}


def _gfl(checkpoint: Checkpoint, config: Mapping[str, Any], facts: dict[str, Any]) -> Read:
    fields, names, _ = _dense(checkpoint, config, relu_before_p7=False)
    _expect(checkpoint, config, "model.bbox_head.anchor_generator.octave_base_scale", ANCHOR_SCALE)
    _expect(checkpoint, config, "model.neck.relu_before_extra_convs", False)
    del fields["p6_source"], fields["relu_before_p7"]  # a GFL of ours has P5 and no ReLU
    spec = GFLSpec(**fields, reg_max=checkpoint.shape("bbox_head.gfl_reg.weight")[0] // 4 - 1, **facts)
    return spec, {**names, "bbox_head.gfl_cls": "class_output", "bbox_head.gfl_reg": "box_output"}


def _fcos(checkpoint: Checkpoint, config: Mapping[str, Any], facts: dict[str, Any]) -> Read:
    fields, names, towers = _dense(checkpoint, config, relu_before_p7=True)
    variant = _fcos_variant(checkpoint)
    head = "model.bbox_head"
    on_regression = _told(config, f"{head}.centerness_on_reg", variant)
    in_strides = _told(config, f"{head}.norm_on_bbox", variant)
    loss = _told(config, f"{head}.loss_bbox.type", "GIoULoss" if variant else "IoULoss")
    sampled = _told(config, f"{head}.center_sampling", variant)
    spec = FCOSSpec(
        **fields,
        head_norm="group" if towers.normed else "none",
        tower_bias=towers.bias,
        centerness_on="regression" if on_regression else "class",
        box_activation="scaled_relu" if in_strides else "exp",
        box_loss="giou" if loss == "GIoULoss" else "iou",
        center_sampling=float(_told(config, f"{head}.center_sample_radius", 1.5)) if sampled else 0.0,
        **facts,
    )
    parts = {"cls": "class_output", "reg": "box_output", "centerness": "centerness_output"}
    outputs = {f"bbox_head.{old}_{part}": ours for old in ("conv", "fcos") for part, ours in parts.items()}
    return spec, {**names, **outputs}


def _fcos_variant(checkpoint: Checkpoint) -> bool:
    """Whether it is the published FCOS with norm_on_bbox and centerness_on_reg: the one with biases before its norms."""
    tower = read_tower(checkpoint, "bbox_head.cls_convs.", "")
    return tower.normed and tower.bias


def _dense(
    checkpoint: Checkpoint, config: Mapping[str, Any], *, relu_before_p7: bool
) -> tuple[dict[str, Any], dict[str, str], Tower]:
    """What heads on all levels share: fields of the spec, names, and the tower of the classes."""
    classes = read_tower(checkpoint, "bbox_head.cls_convs.", "class_tower")
    boxes = read_tower(checkpoint, "bbox_head.reg_convs.", "box_tower")
    maps = len(checkpoint.modules("neck.lateral_convs."))
    levels = len(checkpoint.modules("neck.fpn_convs."))
    width = checkpoint.shape("neck.fpn_convs.0.conv.weight")[0]
    p6 = f"neck.fpn_convs.{maps}.conv.weight"
    _expect(checkpoint, config, "model.bbox_head.anchor_generator.strides", tuple(8 * 2**i for i in range(levels)))
    _expect(checkpoint, config, "model.bbox_head.strides", tuple(8 * 2**i for i in range(levels)))
    fields = {
        "backbone": read_resnet(checkpoint, "backbone."),
        "fpn_channels": width,
        "levels": levels,
        "head_channels": classes.channels,
        "head_depth": classes.depth,
        "p6_source": "p5" if levels == maps or checkpoint.shape(p6)[1] == width else "c5",
        "relu_before_p7": bool(_told(config, "model.neck.relu_before_extra_convs", relu_before_p7)),
    }
    names = {
        "backbone.": "backbone.body.",
        **_pyramid(maps, levels),
        **classes.names,
        **boxes.names,
        **{f"bbox_head.scales.{i}.scale": f"scales.{i}" for i in range(levels)},
    }
    return fields, names, classes


def _faster_rcnn(checkpoint: Checkpoint, config: Mapping[str, Any], facts: dict[str, Any]) -> Read:
    head = "roi_head.bbox_head"
    maps = len(checkpoint.modules("neck.lateral_convs."))
    rpn = read_tower(checkpoint, "rpn_head.rpn_conv.", "rpn.tower")
    scales = _told(config, "model.rpn_head.anchor_generator.scales", (8.0,))
    levels = _told(config, "model.neck.num_outs", maps + 1)
    _expect(checkpoint, config, "model.rpn_head.anchor_generator.strides", tuple(4 * 2**i for i in range(levels)))
    _expect(checkpoint, config, "model.rpn_head.bbox_coder.target_stds", (1.0, 1.0, 1.0, 1.0))
    _expect(checkpoint, config, "model.roi_head.bbox_head.bbox_coder.target_stds", (0.1, 0.1, 0.2, 0.2))
    if len(scales) != 1:
        raise WeightsError(f"{checkpoint.source}: its RPN has anchors of {len(scales)} scales, one is known")
    spec = FasterRCNNSpec(
        backbone=read_resnet(checkpoint, "backbone."),
        fpn_channels=checkpoint.shape("neck.fpn_convs.0.conv.weight")[0],
        levels=levels,
        head_channels=rpn.channels,
        head_depth=rpn.depth,
        anchor_scale=float(scales[0]),
        ratios=_told(config, "model.rpn_head.anchor_generator.ratios", (0.5, 1.0, 2.0)),
        roi_channels=checkpoint.shape(f"{head}.fc_cls.weight")[1],
        **facts,
    )
    return spec, {
        "backbone.": "backbone.body.",
        **_pyramid(maps, maps),
        **rpn.names,
        "rpn_head.rpn_cls": "rpn.class_output",
        "rpn_head.rpn_reg": "rpn.box_output",
        f"{head}.shared_fcs.0": "roi_head.fc.0",
        f"{head}.shared_fcs.1": "roi_head.fc.2",
        f"{head}.fc_cls": "roi_head.class_output",
        f"{head}.fc_reg": "roi_head.box_output",
    }


def _pyramid(maps: int, levels: int) -> dict[str, str]:
    """`maps` of the backbone, and `levels` convolutions, the last of which make further levels."""
    names = {f"neck.lateral_convs.{i}.conv": f"fpn.lateral.{i}" for i in range(maps)}
    for i in range(levels):
        names[f"neck.fpn_convs.{i}.conv"] = f"fpn.output.{i}" if i < maps else f"fpn.extra.{i - maps}"
    return names


def _told(config: Mapping[str, Any], path: str, usual: Any) -> Any:
    """What the configuration says, or else the usual value."""
    value = look_up(config, path)
    return usual if value is None else value


def _expect(checkpoint: Checkpoint, config: Mapping[str, Any], path: str, ours: Any) -> None:
    """Raises WeightsError where the configuration says something else than our detector does."""
    value = look_up(config, path)
    if value is not None and value != ours:
        raise WeightsError(f"{checkpoint.source}: its configuration has {path} {value}; a detector of ours has {ours}")
