"""How much each place of a level weighs in the distillation: the paper's score, and the two that it argues against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, max_pool2d

from frs.detectors import Targets

Score = Literal["richness", "spread", "everywhere", "boxes"]
REACH = 2
"""Strides from the middle of an object to its edge: those of a level are four to eight strides wide."""


@torch.no_grad()
def feature_richness(class_logits: Tensor) -> Tensor:
    """The score S of one level: (B, A*K, H, W) logits -> (B, H, W) float32 in 0..1, without gradient."""
    return class_logits.float().amax(dim=1).sigmoid()


@torch.no_grad()
def spread(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each score over the area that its anchors cover, at all levels: the greatest of all scores of all levels whose object may
    reach the place. scores: (B, H, W) a level, the finest first, each half as large as the one before."""
    finest = scores[0].shape[-2:]
    covered = [
        interpolate(max_pool2d(score[:, None], 2 * REACH + 1, stride=1, padding=REACH), finest) for score in scores
    ]
    whole = torch.stack(covered).amax(dim=0)  # (B, 1, H, W)
    return [adaptive_max_pool2d(whole, score.shape[-2:])[:, 0] for score in scores]


def everywhere(class_logits: Tensor) -> Tensor:
    """1 at each place, as whole-feature imitation weighs it: (B, A*K, H, W) -> (B, H, W) float32."""
    batch, _, height, width = class_logits.shape
    return class_logits.new_ones((batch, height, width), dtype=torch.float32)


def inside_boxes(class_logits: Tensor, targets: Targets, stride: int) -> Tensor:
    """1 at the places whose stride x stride pixels an annotated box touches, 0 elsewhere, as box-masked imitation has it:
    (B, A*K, H, W) -> (B, H, W) float32. Crowd regions are no boxes."""
    height, width = class_logits.shape[2:]
    left, top, right, bottom = targets.boxes[..., None, None].unbind(dim=2)  # (B, G, 1, 1) each
    y = stride * torch.arange(height, device=class_logits.device)[:, None]
    x = stride * torch.arange(width, device=class_logits.device)
    touched = (left < x + stride) & (right > x) & (top < y + stride) & (bottom > y)  # (B, G, H, W)
    return (touched & targets.valid[..., None, None]).any(dim=1).float()
