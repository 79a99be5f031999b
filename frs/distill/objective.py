"""FRS as something to minimise: L = L_gt + alpha w L_feat + beta w L_cls (Du et al., NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frs.detectors import Detector, Targets
from frs.distill.adapters import Adapters
from frs.distill.loss import ClassLoss, frs_loss, standardised
from frs.distill.scores import Score, everywhere, feature_richness, inside_boxes, spread
from frs.distributed import averaged
from frs.training.objective import Objective, Terms

_LIFT = 1024.0
"""Keeps gradients at float16 features from vanishing; of their norms only the ratios count."""


@dataclass(frozen=True)
class DistillationWeights:
    """alpha, beta: numbers, or "auto": measured over `auto_steps` steps so that the terms start at `feature_share` and
    `class_share` times the detection loss, or (auto_by "gradient") their gradients at the student's pyramid at as much of the
    detection loss's, then frozen. warmup_steps: over which w rises from 0 to 1. score: how much a place weighs, to the power of
    `score_power`. normalize: the teacher's features are standardised. class_loss: as `frs_loss`."""

    alpha: float | Literal["auto"] = "auto"
    beta: float | Literal["auto"] = "auto"
    feature_share: float = 1.0
    class_share: float = 1.0
    auto_steps: int = 20
    auto_by: Literal["loss", "gradient"] = "loss"
    warmup_steps: int = 500
    score: Score = "richness"
    score_power: float = 1.0
    normalize: bool = False
    class_loss: ClassLoss = "bce"
    mean_over: Literal["level", "pyramid"] = "level"


class DistillationObjective(Objective):
    """The student's own loss and the two FRS terms.

    The teacher is used and never trained: it is no submodule, so that it is neither in a checkpoint nor in the
    optimiser. Its class branch alone is computed. The adapters are trained with the student and thrown away.
    """

    sums: Tensor
    weights: Tensor

    def __init__(self, student: Detector, teacher: Detector, weights: DistillationWeights) -> None:
        super().__init__()
        self.detector = student
        self.adapters = Adapters(student.spec.fpn_channels, teacher.spec.fpn_channels, levels=student.spec.levels)
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.settings = weights
        given = [torch.nan if w == "auto" else w for w in (weights.alpha, weights.beta)]
        # Both are in the checkpoint: a resumed training must not measure again.
        self.register_buffer("weights", torch.tensor(given, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))

    @property
    def alpha(self) -> float:
        """In force; NaN while `auto` still measures."""
        return float(self.weights[0])

    @property
    def beta(self) -> float:
        """In force; NaN while `auto` still measures."""
        return float(self.weights[1])

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        student = self.detector
        features = student.features(student.normalize(images, targets.sizes))
        outputs = student.head(features)
        parts = student.loss(features, outputs, targets)
        detection = torch.stack(list(parts.values())).sum()
        teacher_features, teacher_logits = self._ask_teacher(images, targets.sizes)
        if self.settings.normalize:
            teacher_features = [standardised(level) for level in teacher_features]
        distilled = frs_loss(
            self.adapters(features),
            teacher_features,
            outputs.class_logits,
            teacher_logits,
            self._scores(teacher_logits, targets),
            class_loss=self.settings.class_loss,
            mean_over=self.settings.mean_over,
        )
        parts = {**parts, "frs_features": distilled.features, "frs_classes": distilled.classes}
        if not self._settled(step, features, [detection, distilled.features, distilled.classes]):
            return Terms(detection, parts)
        ramp = min(1.0, step / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        total = detection + ramp * (self.alpha * distilled.features + self.beta * distilled.classes)
        return Terms(total, parts, {"alpha": self.alpha, "beta": self.beta, "w": ramp})

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor, sizes: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        teacher = self._teacher[0]
        features = teacher.features(teacher.normalize(images, sizes))
        return features, teacher.class_logits(features)

    def _scores(self, teacher_logits: list[Tensor], targets: Targets) -> list[Tensor]:
        """(B, H, W) a level."""
        if self.settings.score == "everywhere":
            return [everywhere(level) for level in teacher_logits]
        if self.settings.score == "boxes":
            strides = self.detector.spec.strides
            return [inside_boxes(level, targets, stride) for level, stride in zip(teacher_logits, strides, strict=True)]
        scores = [feature_richness(level) for level in teacher_logits]
        if self.settings.score == "spread":
            scores = spread(scores)
        return [score**self.settings.score_power for score in scores]

    def _settled(self, step: int, features: list[Tensor], losses: list[Tensor]) -> bool:
        """Whether the weights stand; while `auto` measures, the student learns from the boxes alone.

        losses: of the detection, the features and the classes.
        """
        if not bool(self.weights.isnan().any()):
            return True
        if step < self.settings.auto_steps:
            if self.settings.auto_by == "gradient":
                # The root behind the mean: of several ranks, as of one with all their images.
                squares = torch.stack([_squared_gradient(loss, features) for loss in losses])
                self.sums += averaged(squares).sqrt()
            else:
                self.sums += averaged(torch.stack(losses).double())
            return False
        shares = self.sums.new_tensor([self.settings.feature_share, self.settings.class_share])
        measured = shares * self.sums[0] / self.sums[1:].clamp(min=1e-12)
        self.weights.copy_(torch.where(self.weights.isnan(), measured, self.weights))
        return True


def _squared_gradient(loss: Tensor, features: list[Tensor]) -> Tensor:
    """The squared norm, times a constant, of a loss's gradient at all levels: () float64."""
    gradients = torch.autograd.grad(_LIFT * loss, features, retain_graph=True, allow_unused=True)
    return torch.stack([each.double().square().sum() for each in gradients if each is not None]).sum()
