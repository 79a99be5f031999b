"""The FRS loss: features and classes weighted by feature richness.

Du et al., "Distilling Object Detectors with Feature Richness", NeurIPS 2021 (arXiv 2111.00674). For the level l, with
teacher logits t_l, student logits s_l, teacher features F_l and the student's features behind the adapter phi_l:

    S_l      = max over anchors and classes of sigmoid(t_l)
    L_feat  += sum(S_l * sum_C (F_l - phi_l(f_l))^2) / sum(S_l)
    L_cls   += sum(S_l * sum_AK BCE(sigmoid(s_l), sigmoid(t_l))) / sum(S_l)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from frs.distill.scores import feature_richness
from frs.distributed import averaged, normaliser

ClassLoss = Literal["bce", "quality_focal"]
EPSILON = 1e-12
"""Keeps a level on which the score is 0 everywhere from dividing by nothing."""


@dataclass(frozen=True)
class FRSLoss:
    """Both terms, unweighted, summed over the levels: () float32."""

    features: Tensor
    classes: Tensor


@torch.no_grad()
def standardised(features: Tensor) -> Tensor:
    """(B, C, H, W) -> the same in float32, each channel with zero mean and unit variance over B, H and W, of all ranks' images
    together; without gradient. Every rank must call it. A channel that is the same everywhere becomes 0."""
    values = features.float()
    moments = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
    mean, square = averaged(moments.double())
    scale = (square - mean.square()).clamp(min=EPSILON).rsqrt()
    found: Tensor = (values - mean.float()[:, None, None]) * scale.float()[:, None, None]
    return found


def frs_loss(
    adapted_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    richness: Sequence[Tensor] | None = None,
    *,
    class_loss: ClassLoss = "bce",
    mean_over: Literal["level", "pyramid"] = "level",
) -> FRSLoss:
    """The two terms over all levels, in float32 whatever autocast says.

    adapted_features, teacher_features: (B, C, H, W) a level; student_logits, teacher_logits: (B, A*K, H, W) a level.
    richness: (B, H, W) a level, in place of the teacher's score. class_loss "quality_focal": the cross-entropy of each score is
    weighted by the squared distance to the teacher's (Li et al. 2020). mean_over "pyramid": all levels are divided by the score
    of all of them, so that one without a rich place weighs little. No gradient reaches the teacher. Of several ranks each has
    the part of its own images, normalised so that their mean is the loss of the whole batch; every rank must call it. Raises
    ValueError when the sides differ in levels or shapes.
    """
    if richness is None:
        richness = [feature_richness(logits) for logits in teacher_logits]
    _check(adapted_features, teacher_features, student_logits, teacher_logits, richness)
    features = adapted_features[0].new_zeros((), dtype=torch.float32)
    classes = features.clone()
    with torch.autocast(adapted_features[0].device.type, enabled=False):
        scores = [score.detach().float() for score in richness]
        masses = normaliser(torch.stack([score.sum() for score in scores]), least=EPSILON)  # of all ranks' images
        if mean_over == "pyramid":
            masses = masses.sum().expand_as(masses)
        for ours, theirs, student, teacher, score, mass in zip(
            adapted_features, teacher_features, student_logits, teacher_logits, scores, masses.unbind(), strict=True
        ):
            distance = (theirs.detach().float() - ours.float()).square().sum(dim=1)  # (B, H, W)
            soft = teacher.detach().float().sigmoid()
            entropy = binary_cross_entropy_with_logits(student.float(), soft, reduction="none")
            if class_loss == "quality_focal":
                entropy = entropy * (soft - student.float().sigmoid()).square()
            features = features + (score * distance).sum() / mass
            classes = classes + (score * entropy.sum(dim=1)).sum() / mass
    return FRSLoss(features, classes)


def _check(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    richness: Sequence[Tensor],
) -> None:
    counts = [len(levels) for levels in (ours, theirs, student, teacher, richness)]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            "frs_loss needs the same levels on both sides, got "
            f"{counts[0]} adapted and {counts[1]} teacher features, {counts[2]} student and {counts[3]} teacher logits, "
            f"{counts[4]} scores"
        )
    for i in range(counts[0]):
        for name, a, b in (("features", ours[i], theirs[i]), ("class logits", student[i], teacher[i])):
            if a.shape != b.shape:
                raise ValueError(f"level {i}: student {name} {tuple(a.shape)}, teacher {name} {tuple(b.shape)}")
        place = (*teacher[i].shape[:1], *teacher[i].shape[2:])
        for name, shape in (
            ("features", (*ours[i].shape[:1], *ours[i].shape[2:])),
            ("score", tuple(richness[i].shape)),
        ):
            if shape != place:
                raise ValueError(f"level {i}: {name} of (B, H, W) {shape}, class logits of {place}")
