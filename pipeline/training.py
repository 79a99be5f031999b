"""The section of a training: how a detector is trained, and what that does to its images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.section import EdgeLength, Fraction, Section


class AugmentConfig(Section):
    """What a training does to its images; validation never does."""

    flip_horizontal: bool = Field(True, description="mirror an image, left to right, one time in two")
    flip_vertical: bool = Field(False, description="mirror an image, top to bottom, one time in two")
    quarter_turns: bool = Field(False, description="turn by 0, 90, 180 or 270 degrees; for square inputs")
    scale: tuple[float, float] | None = Field(
        None, description="zoom by a factor between these, 0 < from <= to; null: none"
    )
    colour: Fraction = Field(0.0, description="brightness and contrast vary by up to this part")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be [from, to] with 0 < from <= to, got {list(self.scale)}")
        return self


class TrainConfig(Section):
    """AdamW with one cycle, or mmdetection's sgd and step; the last epoch's weights, or their mean, are the result."""

    how = frozenset({"workers", "checkpoint_minutes", "log_every", "tensorboard", "devices", "nodes", "rendezvous"})

    epochs: int = Field(12, ge=1, le=1000, description="passes over the training images")
    batch: int = Field(
        8, ge=1, le=1024, description="images of a step, over all devices; an epoch's last, smaller batch is left out"
    )
    accumulate: int = Field(
        1, ge=1, le=1024, description="parts of equal size that a batch is computed in, where memory holds no whole one"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd's")
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate; mmdetection's sgd: 0.01 for 16 images")
    backbone_lr: float = Field(1.0, ge=0, le=10, description="factor on lr for the backbone; 0 freezes it")
    bias_lr: float = Field(1.0, gt=0, le=10, description="factor on lr for biases outside of normalisation layers")
    weight_decay: float = Field(
        1e-2,
        ge=0,
        le=1,
        description="adamw: decoupled, of weights alone; sgd: of all parameters, biases and normalisation too "
        "(mmdetection's: 1e-4)",
    )
    bias_decay: bool = Field(True, description="sgd: decay biases outside of normalisation layers")
    schedule: Literal["one_cycle", "step"] = Field(
        "one_cycle", description="lr rises and falls on a cosine, or falls to a tenth at each of `milestones`"
    )
    warmup: Fraction = Field(0.1, description="one_cycle: part of the steps in which lr rises to its peak")
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="step: epochs after which lr falls, e.g. [8, 11] of 12"
    )
    warmup_steps: int = Field(500, ge=0, description="step: optimiser steps until lr is whole")
    warmup_ratio: float = Field(1e-3, gt=0, le=1, description="step: part of lr at the first step")
    warmup_shape: Literal["linear", "constant"] = Field(
        "linear", description="step: lr rises from that part, or keeps to it until warmup_steps"
    )
    frozen_stages: int = Field(
        0, ge=0, le=4, description="1: the backbone's stem and layer1 stay as they are, ...; for ResNets and their kin"
    )
    frozen_norm: Literal["none", "statistics", "all"] = Field(
        "none", description="of the backbone's BatchNorm stays as it is: the statistics; all: scale and shift too"
    )
    clip: float | None = Field(10.0, gt=0, description="largest norm of the gradient; null: not clipped")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="autocast; auto: bf16 where the device computes it natively, else fp32; fp16: with a scaled loss",
    )
    compile: bool = Field(
        False, description="by torch.compile, which needs a C++ compiler: minutes at first, faster then"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running mean of the weights, which is then scored and kept, e.g. 0.999; null: none",
    )
    drop_empty: bool = Field(False, description="leave out images without an object (crowds do not count)")
    resize: Literal["letterbox", "shortest_edge"] = Field(
        "letterbox",
        description="letterbox: images are brought to `input`, as on the device; shortest_edge: to `short_side` and "
        "`long_side`, as in the papers, upright and lying ones in batches of their own, padded with zeros",
    )
    short_side: tuple[EdgeLength, ...] = Field(
        (800,), min_length=1, description="shortest_edge: pixels of the shorter side; of several one is drawn"
    )
    multiscale: Literal["value", "range"] = Field(
        "value",
        description="shortest_edge: whether one of `short_side` is drawn, or any whole number from its least to its greatest",
    )
    long_side: EdgeLength = Field(1333, description="shortest_edge: most pixels of the longer side, which wins")
    augment: AugmentConfig = Field(AugmentConfig(), description="changes to the images")
    workers: int = Field(0, ge=0, le=64, description="loader processes; 0: in the training process; changes no result")
    validate_every: int = Field(0, ge=0, description="epochs between measurements of AP; 0: none")
    log_every: int = Field(10, ge=1, description="steps between lines in metrics.jsonl; changes no weights")
    tensorboard: bool = Field(
        False, description="event files for TensorBoard too, which needs the package tensorboard; changes no weights"
    )
    checkpoint_minutes: float = Field(
        10.0,
        gt=0,
        description="minutes between checkpoints within an epoch; each epoch ends with one; changes no result",
    )
    devices: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        1,
        description="GPUs of this machine that share a batch, a process each; auto: all that torch sees; on a CPU: processes; "
        "changes no result but by rounding, by the statistics that BatchNorm takes of a part of the batch, and with "
        "shortest_edge by the padding, which is each part's own",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="machines that train together, given the same file; all but the first with --until student",
    )
    rendezvous: str | None = Field(
        None, pattern=r"^\S+:\d{1,5}$", description="host:port of the first machine, where they meet; for nodes > 1"
    )

    @model_validator(mode="after")
    def _shared_out(self) -> TrainConfig:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                f"nodes is {self.nodes}, so rendezvous must say where they meet: host:port of the first one"
            )
        shares = self.nodes * (1 if self.devices == "auto" else self.devices) * self.accumulate
        if self.batch % shares:
            raise ValueError(
                f"batch ({self.batch}) must be a multiple of devices times nodes times accumulate ({shares}), which share it"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        for choice, value, keys in (
            ("optimizer", "sgd", ("momentum", "bias_decay")),
            ("schedule", "one_cycle", ("warmup",)),
            ("schedule", "step", ("milestones", "warmup_steps", "warmup_ratio", "warmup_shape")),
        ):
            given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if given and getattr(self, choice) != value:
                raise ValueError(
                    f"{', '.join(given)}: only for {choice}: {value}, and {choice} is {getattr(self, choice)}; "
                    "leave out the one or change the other"
                )
        ordered = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if self.schedule == "step" and not (self.milestones and ordered and self.milestones[-1] < self.epochs):
            raise ValueError(
                f"schedule: step needs milestones, rising and below epochs ({self.epochs}), e.g. [8, 11] of 12, "
                f"got {list(self.milestones)}"
            )
        return self

    @model_validator(mode="after")
    def _sides_agree(self) -> TrainConfig:
        if self.long_side < max(self.short_side):
            raise ValueError(
                f"long_side ({self.long_side}) must not be less than short_side ({max(self.short_side)}), or that is never "
                "reached"
            )
        if self.multiscale == "range" and len(self.short_side) != 2:
            raise ValueError(f"multiscale: range needs short_side: [from, to], got {list(self.short_side)}")
        if self.resize == "shortest_edge" and self.augment.quarter_turns:
            raise ValueError("augment.quarter_turns is for square inputs; it cannot be had with resize: shortest_edge")
        return self
