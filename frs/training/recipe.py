"""How a detector is trained: all that decides the result besides the data and the initial weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How to train.

    accumulate: micro-batches that a batch is split into; it must divide the batch. The gradient is their mean.
    optimizer: "adamw" or "sgd", the latter with `momentum`; see `frs.training.optimiser` for what each decays.
    lr: the peak. backbone_lr: factor on it for the backbone, 0 freezes it; bias_lr: factor for biases outside of
    normalisation layers; bias_decay: whether sgd decays those.
    schedule: "one_cycle" (linear rise over `warmup`, a part of all steps, then a cosine to zero), or "step" (from
    `warmup_ratio` over `warmup_steps` steps, "linear" or "constant" by `warmup_shape`; a tenth from each of the epochs
    `milestones` on).
    frozen_stages: 0..4, the backbone's stem and first stages (1: stem and layer1) stay as they are; frozen_norm: of the
    backbone's BatchNorm layers "none", the "statistics", or "all", scale and shift too, stay as they are.
    clip: largest L2 norm of the gradient, or None. precision: "auto", "fp32", "bf16" or "fp16", the last
    with a loss that is scaled as far as its gradient bears it. ema: decay of a running mean of the detector's weights, which
    is then what is validated and what comes of the training; None: the weights themselves. compile: by torch.compile.
    validate_every: epochs between measurements of AP, 0: none. log_every: steps between lines in metrics.jsonl; tensorboard:
    whether TensorBoard's files are written too.
    """

    epochs: int
    lr: float
    seed: int = 0
    accumulate: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.9
    backbone_lr: float = 1.0
    bias_lr: float = 1.0
    weight_decay: float = 1e-2
    bias_decay: bool = True
    schedule: str = "one_cycle"
    warmup: float = 0.1
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 500
    warmup_ratio: float = 1e-3
    warmup_shape: str = "linear"
    frozen_stages: int = 0
    frozen_norm: str = "none"
    clip: float | None = 10.0
    precision: str = "auto"
    ema: float | None = None
    compile: bool = False
    validate_every: int = 0
    log_every: int = 10
    tensorboard: bool = False
    checkpoint_minutes: float = 10.0
