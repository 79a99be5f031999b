"""The configuration: what may stand in the YAML file, what it means, and what is said when it is wrong.

Every section is frozen and refuses unknown keys. A relative path is relative to the file that names it; paths
never enter a fingerprint (the content of the file behind them does).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.deployment import (
    MADE_OF,
    BundleConfig,
    EngineConfig,
    ExportConfig,
    GatesConfig,
    ProfileConfig,
    QuantizeConfig,
)
from pipeline.detectors import AnyDetector
from pipeline.published import AssumedConfig, Checkpoint, Published
from pipeline.section import EdgeLength, Fraction, InputPath, Section, Side, Weight
from pipeline.training import TrainConfig

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class TreesData(Section):
    """The quick-start's aerial photographs, out of the wheel `deepforest==2.1.0`."""

    source: Literal["trees"] = Field(description="this data set")
    archive: InputPath | None = Field(None, description="the wheel, where it need not be downloaded")
    tile: int = Field(160, ge=64, le=1024, description="side of a tile, in pixels of the photograph")
    stride: int = Field(80, ge=16, le=1024, description="distance between training tiles, in pixels")
    validation_fraction: float = Field(0.3, gt=0.05, lt=0.9, description="the lower part of each photograph")
    min_visible: Fraction = Field(0.4, description="a box of which a tile shows less is dropped")
    limit: int | None = Field(None, ge=4, description="keep at most this many tiles of each split")


class CocoSplit(Section):
    """One split of a COCO data set."""

    annotations: InputPath = Field(description="the JSON file (COCO instances)")
    images: InputPath = Field(description="the folder that its file names are relative to")


class CocoData(Section):
    """Your own data set, in COCO's format; the images are read where they are."""

    source: Literal["coco"] = Field(description="your own")
    train: CocoSplit = Field(description="what is trained on")
    val: CocoSplit = Field(description="what is scored on; has the same categories and no image of `train`")


class InputSize(Section):
    """The letterboxed image that every detector sees."""

    height: Side = Field(256, description="pixels, a multiple of 32")
    width: Side = Field(256, description="pixels, a multiple of 32")


class PreflightConfig(Section):
    """What is looked at before anything trains: weights, classes, one step of each training, time, memory, disk."""

    images: int = Field(100, ge=1, description="validation images on which a given teacher's AP is measured")
    teacher_ap: float | None = Field(
        None, ge=0, le=100, description="what that AP should be; if it is less, the run stops. null: not compared"
    )


class TeacherConfig(Section):
    """The heavy detector: trained here, or given."""

    detector: AnyDetector | None = Field(
        None, description="the network; may be left out where there is a checkpoint, which must agree with what is here"
    )
    checkpoint: Checkpoint | None = Field(
        None,
        description="a trained teacher: a file (.safetensors) that a run wrote, `torchvision:NAME` (downloaded), "
        "`torchvision:FILE` or `mmdet:FILE`",
    )
    assume: AssumedConfig = Field(AssumedConfig(), description="what a published checkpoint does not say")
    train: TrainConfig = Field(TrainConfig(), description="its training, where there is no checkpoint")

    @model_validator(mode="after")
    def _known(self) -> TeacherConfig:
        if self.detector is None and self.checkpoint is None:
            raise ValueError("needs detector (the network), or a checkpoint, which says what it is")
        if self.assume != AssumedConfig() and not isinstance(self.checkpoint, Published):
            raise ValueError("assume is about a checkpoint of torchvision: or mmdet:; remove it, or name one")
        return self


class StudentConfig(Section):
    """The light detector; its control is the same without distillation."""

    detector: AnyDetector = Field(description="the network; as many levels and anchors as the teacher's")
    train: TrainConfig = Field(TrainConfig(), description="its training, and its control's")


class DistillConfig(Section):
    """FRS: L = L_gt + alpha w L_feat + beta w L_cls, w rising from 0 to 1 over the warm-up."""

    alpha: Weight | Literal["auto"] = Field("auto", description="weight of the feature term; auto: measured")
    beta: Weight | Literal["auto"] = Field("auto", description="weight of the class term; auto: measured")
    feature_share: float = Field(1.0, gt=0, description="alpha: auto: what that term starts at, in detection losses")
    class_share: float = Field(1.0, gt=0, description="beta: auto: what that term starts at, in detection losses")
    auto_steps: int = Field(20, ge=1, description="auto: steps over which the terms are measured")
    auto_by: Literal["loss", "gradient"] = Field(
        "loss", description="auto: whether the terms are measured, or their gradients at the student's pyramid"
    )
    warmup_steps: int = Field(500, ge=0, description="steps over which w rises from 0 to 1")
    score: Literal["richness", "spread", "everywhere", "boxes"] = Field(
        "richness",
        description="how much a place weighs: the teacher's score; the same everywhere (whole-feature imitation); 1 inside "
        "annotated boxes, 0 outside (box-masked imitation)",
    )
    score_power: float = Field(1.0, gt=0, description="richness: to the power of this")
    normalize: bool = Field(
        False, description="compare with the teacher's features at zero mean and unit variance, by channel"
    )
    class_loss: Literal["bce", "quality_focal"] = Field(
        "bce", description="cross-entropy; or that weighted by the squared distance of the scores"
    )
    mean_over: Literal["level", "pyramid"] = Field(
        "level", description="what the score of a place is divided by: all score of its level, or of the pyramid"
    )


class ValidateConfig(Section):
    """Scoring on the validation split."""

    batch: int = Field(8, ge=1, le=256, description="images of a call; changes no score but by rounding")
    resize: Literal["auto", "letterbox", "shortest_edge", "both"] = Field(
        "auto",
        description="what torch is scored at with the reference decode: letterbox: `input`, as every exported file; "
        "shortest_edge: the papers'; auto: letterbox, and shortest_edge besides where the student is trained so",
    )
    short_side: EdgeLength | None = Field(
        None, description="shortest_edge: pixels of the shorter side; null: the greatest of `student.train.short_side`"
    )
    long_side: EdgeLength | None = Field(
        None, description="shortest_edge: most pixels of the longer side; null: `student.train.long_side`"
    )


class ReportConfig(Section):
    """The pictures in the report."""

    pictures: int = Field(4, ge=0, le=20, description="of each kind: score maps, images won, images lost")
    score: Fraction | None = Field(
        None,
        description="boxes with a lower score are not drawn; null: each model's own, where its F1 at IoU 0.5 is highest",
    )


class RuntimeConfig(Section):
    """Where it runs."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="of torch; auto: the GPU where there is one")
    threads: int | None = Field(
        None, ge=1, le=1024, description="of torch and ONNX Runtime; null: as many as there are cores"
    )


class Config(Section):
    """The sections of the file, and what concerns all of them."""

    version: Literal[1] = Field(description="the schema this file is written for")
    name: str = Field(
        pattern=RUN_NAME,
        description="of the run, and of its folder: letters, digits, . _ -",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, the images' order and augmentation")
    data: Annotated[TreesData | CocoData, Field(discriminator="source")] = Field(description="what to learn from")
    input: InputSize = Field(InputSize(), description="the size that images are brought to")
    teacher: TeacherConfig = Field(description="the heavy detector")
    student: StudentConfig = Field(description="the light detector")
    preflight: PreflightConfig = Field(PreflightConfig(), description="what is looked at before anything trains")
    distill: DistillConfig = Field(DistillConfig(), description="how the one learns from the other")
    control: bool = Field(True, description="train the student undistilled too; false: no gain is shown")
    export: ExportConfig = Field(ExportConfig(), description="the ONNX files")
    quantize: QuantizeConfig = Field(QuantizeConfig(), description="their int8 variants")
    engine: EngineConfig = Field(EngineConfig(), description="TensorRT engines")
    validation: ValidateConfig = Field(ValidateConfig(), description="scoring")
    profile: ProfileConfig = Field(ProfileConfig(), description="latency and memory")
    bundle: BundleConfig = Field(BundleConfig(), description="the archive for a device")
    report: ReportConfig = Field(ReportConfig(), description="pictures in the report")
    gates: GatesConfig = Field(GatesConfig(), description="limits that a run must keep")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="device and threads")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.teacher.detector is not None:
            _check_pair(self.teacher.detector, self.student.detector)
        if self.input.height != self.input.width:
            for name, train in (("teacher", self.teacher.train), ("student", self.student.train)):
                if train.augment.quarter_turns:
                    raise ValueError(f"{name}.train.augment.quarter_turns needs input.height == input.width")
        if self.gates.min_gain is not None and not self.control:
            raise ValueError("gates.min_gain needs the control to compare with; set control: true")
        trained, scored = self.student.train.resize, self.validation.resize
        if scored not in ("auto", "both", trained):
            raise ValueError(
                f"validation.resize is {scored}, but student.train.resize is {trained}, at which the gain is measured; set "
                "validation.resize: both"
            )
        fixed, (least, _, greatest) = self.export.batch, self.engine.batches
        for batch in self.profile.batches or ():
            if fixed not in (None, batch):
                raise ValueError(
                    f"profile.batches has {batch}, but export.batch is {fixed}, and the files take no other; set export.batch: "
                    "null, which leaves it open, or leave profile.batches out"
                )
            if fixed is None and not least <= batch <= greatest:
                raise ValueError(
                    f"profile.batches has {batch}, but engine.batches lets engines take {least} to {greatest}; widen that, or "
                    "leave this batch out"
                )
        for precision in self.quantize.precisions or ():
            if MADE_OF[precision] not in self.export.precisions:
                raise ValueError(
                    f"quantize.precisions has {precision}, which is made from the {MADE_OF[precision]} file; add it to "
                    "export.precisions"
                )
        return self

    @property
    def quantised(self) -> tuple[str, ...]:
        """The int8 precisions that are made."""
        if self.quantize.precisions is not None:
            return self.quantize.precisions
        return tuple(precision for precision, base in MADE_OF.items() if base in self.export.precisions)

    def section(self, key: str) -> Any:
        """The value of a dotted key as plain JSON types, for a fingerprint.

        Without paths, whose content is hashed instead, and without what changes only how the work is done.
        Raises KeyError for a key that the configuration does not have.
        """
        value: Any = self
        for part in key.split("."):
            if part not in type(value).model_fields:
                raise KeyError(key)
            value = getattr(value, part)
        return _plain(value)

    def to_yaml(self) -> str:
        """The resolved configuration, defaults included, as a file that `run` takes.

        Of the network of a given teacher only what was claimed of it: a default would be a claim too.
        """
        import yaml

        resolved = self.model_dump(mode="json")
        if self.teacher.checkpoint is not None and self.teacher.detector is not None:
            claimed = self.teacher.detector.model_dump(mode="json", exclude_unset=True)
            resolved["teacher"]["detector"] = {"family": self.teacher.detector.family, **claimed}
        return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def _check_pair(teacher: AnyDetector, student: AnyDetector) -> None:
    """What FRS compares must be there on both sides."""
    if teacher.levels != student.levels:
        raise ValueError(
            f"teacher.detector.levels ({teacher.levels}) and student.detector.levels ({student.levels}) must agree: FRS "
            "compares the pyramids level by level"
        )
    if teacher.finest != student.finest:
        raise ValueError(
            f"teacher.detector.family {teacher.family} has a pyramid from stride {teacher.finest}, student.detector.family "
            f"{student.family} from stride {student.finest}; FRS compares level by level, so choose families that agree"
        )
    if teacher.anchors_per_location != student.anchors_per_location:
        raise ValueError(
            f"teacher and student must have the same anchors per location ({teacher.anchor_keys} of a {teacher.family}, "
            f"{student.anchor_keys} of a {student.family}), got {teacher.anchors_per_location} and "
            f"{student.anchors_per_location}"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Published):
        return {"library": value.library, "name": value.name}
    if isinstance(value, Section):
        return _plain({key: inner for key, inner in value if key not in value.how})
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not isinstance(v, Path)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value if not isinstance(v, Path)]
    return value
