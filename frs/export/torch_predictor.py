"""A detector in torch behind the interface that exported files have too."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from frs.data.resize import padded
from frs.detectors.base import Detector
from frs.edge.predictor import Detections, ModelInfo
from frs.export.graph import DeployedDetector


class TorchPredictor:
    """decode "reference": the detector's own, exact NMS; "graph": what is exported, Cluster-NMS over K candidates.

    Runs where the detector's parameters are; the detector is copied. half: as `DeployedDetector`; for "graph" only.
    candidates and rounds are of the graph's decode; the reference takes its usual 1,000 candidates a level.
    """

    def __init__(
        self,
        detector: Detector,
        height: int,
        width: int,
        *,
        decode: str = "reference",
        candidates: int = 300,
        proposals: int = 300,
        rounds: int = 16,
        detections: int = 100,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        half: bool = False,
    ) -> None:
        if decode not in ("reference", "graph"):
            raise ValueError(f"decode {decode!r}, expected reference or graph")
        if half and decode == "reference":
            raise ValueError("the reference decode runs in float32")
        self.info = ModelInfo(height, width, tuple(detector.spec.classes), tuple(detector.spec.category_ids))
        self.device = detector.pixel_mean.device
        self.detections, self.score_threshold, self.iou_threshold = detections, score_threshold, iou_threshold
        self.detector = copy.deepcopy(detector).eval() if decode == "reference" else None
        self.graph = None
        if decode == "graph":
            self.graph = DeployedDetector(
                detector,
                candidates=candidates,
                proposals=proposals,
                rounds=rounds,
                detections=detections,
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                half=half,
            )

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        """images: (N, 3, height, width) uint8; of any height and width, the same for all, with the reference decode.

        Sides that are no multiples of 32 are padded with zeros behind the normalisation, and boxes clipped to what is no
        padding before NMS, as mmdetection does.
        """
        batch = torch.from_numpy(images).to(self.device)
        if self.graph is not None:
            boxes, scores, labels, counts = self.graph(batch)
            found = [(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]
        else:
            assert self.detector is not None
            height, width = batch.shape[2:]
            padding = (0, padded(height, width)[1] - width, 0, padded(height, width)[0] - height)
            features = self.detector.features(pad(self.detector.normalize(batch), padding))
            found = self.detector.reference_detections(
                features,
                self.detector.head(features),
                image_size=(height, width),
                score_threshold=self.score_threshold,
                iou_threshold=self.iou_threshold,
                max_detections=self.detections,
            )
        return [
            Detections(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.int().cpu().numpy())
            for boxes, scores, labels in found
        ]
