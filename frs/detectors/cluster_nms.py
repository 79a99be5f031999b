"""Cluster-NMS (Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference", 2021, algorithm 3).

Greedy NMS asks boxes one after the other; here all are asked at once, several times over. A round keeps a box unless one
that the round before kept suppresses it:

    keep_0[j] = 1
    keep_r[j] = 1 - max over i of suppresses[i, j] * keep_{r-1}[i]

After r rounds every box at the end of a chain of at most r overlaps is decided as greedy NMS decides it; with as many
rounds as the longest chain has overlaps, all are. Shapes are static, and the operators are those of any runtime: a
K x K matrix and R products with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frs.detectors.boxes import iou


def cluster_nms(boxes: Tensor, labels: Tensor | None, *, iou_threshold: float, rounds: int) -> Tensor:
    """Which candidates survive: (B, K) float32, 1 or 0.

    boxes: (B, K, 4) float32, xyxy, in descending order of score; labels: (B, K), only boxes of one class suppress each
    other, where their IoU is greater than the threshold; None: all are of one class.
    """
    overlaps = iou(boxes, boxes) > iou_threshold
    if labels is not None:
        overlaps = overlaps & (labels[:, :, None] == labels[:, None, :])
    suppresses = overlaps.float().triu(1)  # (B, K, K): the better one, row i, suppresses column j
    keep = torch.ones_like(boxes[:, None, :, 0])  # (B, 1, K)
    for _ in range(rounds):
        # A sum of zeros and ones is 0 where their maximum is, and a product of matrices is the faster of the two.
        keep = torch.relu(1.0 - keep @ suppresses)
    return keep[:, 0]
