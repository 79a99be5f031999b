"""What the detectors that answer at every place have in common: towers, flat outputs, and the choice of the best answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

PRIOR = 0.01
"""What every score is before the first step: most places are background."""


def tower(channels: int, width: int, depth: int, norm: str, *, bias: bool | None = None) -> nn.Sequential:
    """`depth` times 3x3 convolution, GroupNorm if norm is "group", ReLU; (B, channels, H, W) -> (B, width, H, W).

    bias: of the convolutions; None: where there is no norm behind them.
    """
    layers: list[nn.Module] = []
    for i in range(depth):
        biased = norm == "none" if bias is None else bias
        layers.append(nn.Conv2d(channels if i == 0 else width, width, 3, padding=1, bias=biased))
        if norm == "group":
            layers.append(nn.GroupNorm(math.gcd(32, width), width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(*parts: nn.Module) -> None:
    """Convolutions as the RetinaNet paper has them (section 4.1): normal with a deviation of 0.01, biases 0."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def set_prior(output: nn.Conv2d) -> None:
    """The class output's bias, so that every score starts at the prior."""
    assert output.bias is not None
    nn.init.constant_(output.bias, -math.log((1 - PRIOR) / PRIOR))


def flatten(levels: list[Tensor], size: int) -> Tensor:
    """[(B, A * size, H, W)] -> (B, sum of H * W * A, size), in the order of the anchors."""
    return torch.cat(per_level(levels, size), dim=1)


def per_level(levels: list[Tensor], size: int) -> list[Tensor]:
    """[(B, A * size, H, W)] -> [(B, H * W * A, size)]: the same memory where that is channels-last."""
    return [level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, size) for level in levels]


def best_pairs(scores: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `candidates` best (place, class) pairs of (B, N, K): scores (B, k) descending, places and labels (B, k) int64.

    Two top-ks instead of one over all pairs: a pair among the best belongs to a place that is among the best by its best
    class. So an index never exceeds `candidates` times the classes, small enough for the exporter's division in float
    arithmetic. Any increasing function of the scores (logits) gives the same pairs.
    """
    classes = scores.shape[2]
    best, place = scores.amax(dim=2).topk(min(candidates, scores.shape[1]))
    if classes == 1:
        return best, place, torch.zeros_like(place)
    pairs = scores.gather(1, place[..., None].expand(-1, -1, classes)).flatten(1)
    best, pair = pairs.topk(min(candidates, pairs.shape[1]))
    return best, place.gather(1, torch.div(pair, classes, rounding_mode="floor")), pair % classes


def select(values: Tensor, places: Tensor) -> Tensor:
    """(B, N, C) at places (B, k) -> (B, k, C)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def reference_selection(
    ranking: Sequence[Tensor],
    decode: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    *,
    score_threshold: float,
    per_level: int,
    iou_threshold: float,
    max_detections: int,
    drop_empty: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """One image's boxes (D, 4), scores (D,) and labels (D,): the best pairs of every level, then class-wise NMS.

    ranking: (N, K) scores a level, by which a pair has to pass the threshold and be among the `per_level` best. decode:
    from the level's number and places (k,) to their boxes (k, 4), clipped, and a factor (k,) on their scores. drop_empty:
    boxes without area are dropped before NMS, as mmdetection does.
    """
    parts = []
    for level, scores in enumerate(ranking):
        classes = scores.shape[1]
        flat = scores.flatten()
        best, pair = flat.topk(min(per_level, len(flat)))
        pair, best = pair[best > score_threshold], best[best > score_threshold]
        boxes, factor = decode(level, pair // classes)
        parts.append((boxes, best * factor, pair % classes))
    boxes, best, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    if drop_empty:
        full = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, best, labels = boxes[full], best[full], labels[full]
    kept = batched_nms(boxes, best, labels, iou_threshold)[:max_detections]
    return boxes[kept], best[kept], labels[kept]
