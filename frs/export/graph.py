"""The graph that ships: pixels in, detections out, with normalisation, decoding and NMS inside."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from frs.detectors.base import Detector
from frs.detectors.boxes import area
from frs.detectors.cluster_nms import cluster_nms


class Selection(nn.Module):
    """From candidates to detections: threshold, Cluster-NMS, and the best `detections` of what is left."""

    def __init__(self, rounds: int, detections: int, score_threshold: float, iou_threshold: float) -> None:
        super().__init__()
        self.rounds = rounds
        self.detections = detections
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, K, 4), (B, K) descending, (B, K) -> (B, D, 4), (B, D), (B, D) int32, zero-padded, and (B,) int32."""
        keep = cluster_nms(boxes, labels, iou_threshold=self.iou_threshold, rounds=self.rounds)
        valid = (scores > self.score_threshold) & (area(boxes) > 0.0)
        scores, index = (scores * keep * valid.float()).topk(min(self.detections, scores.shape[1]))
        found = scores > 0.0
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)) * found[..., None].float()
        labels = labels.gather(1, index).int() * found.int()
        return boxes, scores, labels, found.int().sum(dim=1, dtype=torch.int32)


class DeployedDetector(nn.Module):
    """A detector as it is exported; the one that is handed in is copied, not changed.

    candidates: K, what enters NMS; proposals: what a second stage looks at, where there is one; rounds: R of Cluster-NMS;
    half: trunk and heads in float16, weights and activations, with normalisation, decoding and NMS in float32.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        candidates: int = 300,
        proposals: int = 300,
        rounds: int = 16,
        detections: int = 100,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        half: bool = False,
    ) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).float()
        self.dtype = torch.float16 if half else torch.float32
        if half:
            mean, std = self.detector.pixel_mean, self.detector.pixel_std
            self.detector.half()
            self.detector.pixel_mean, self.detector.pixel_std = mean, std
        self.detector.proposals = proposals
        self.candidates = candidates
        self.selection = Selection(rounds, detections, score_threshold, iou_threshold)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images: (N, 3, H, W) uint8, RGB, letterboxed.

        -> boxes (N, D, 4) float32 xyxy in pixels of the input, scores (N, D) float32, labels (N, D) int32, best first and
        zero-padded, and the number of detections (N,) int32.
        """
        detector = self.detector
        features = detector.features(detector.normalize(images).to(self.dtype))
        outputs = detector.head(features).float()
        size = (images.shape[-2], images.shape[-1])
        found = detector.decode(features, outputs, candidates=self.candidates, image_size=size)
        selected: tuple[Tensor, Tensor, Tensor, Tensor] = self.selection(found.boxes, found.scores, found.labels)
        return selected
