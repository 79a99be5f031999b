"""A file that `yolo export` wrote, in ONNX Runtime, as a predictor of ours; its pre- and post-processing, written anew.

As its documentation and its file's metadata say: RGB, scaled to fit by bilinear interpolation without antialiasing (OpenCV's
INTER_LINEAR), in the middle of the input with 114 around it, divided by 255. Then a threshold of 0.001, and where the file
leaves it to the caller non-maximum suppression class by class at an overlap of 0.7, with each class of a box a detection of
its own; at most 300 detections an image. These are the figures with which `yolo val` scores.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch.nn import functional
from torchvision.ops import batched_nms

from frs.data.coco import CocoDataset, CocoImage
from frs.edge.image import PADDING
from frs.edge.predictor import Detections, ModelInfo

SCORE = 0.001
OVERLAP = 0.7
MOST = 300


@dataclass(frozen=True)
class CentredLetterbox:
    """How an image of original_height x original_width lies: scaled to height x width, its corner at (left, top).

    clipped: whether boxes are brought inside the image on the way back; `yolo predict` does that, `yolo val` does not.
    """

    height: int
    width: int
    left: int
    top: int
    original_height: int
    original_width: int
    clipped: bool = True

    def to_input(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the image -> in pixels of the input."""
        return (boxes * self._ratios + self._corner).astype(np.float32)

    def to_original(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the input -> in pixels of the image."""
        found = (boxes - self._corner) / self._ratios
        limits = np.array([self.original_width, self.original_height] * 2)
        return (found.clip(0, limits) if self.clipped else found).astype(np.float32)

    @property
    def _ratios(self) -> npt.NDArray[np.float64]:
        return np.array([self.width / self.original_width, self.height / self.original_height] * 2)

    @property
    def _corner(self) -> npt.NDArray[np.float64]:
        return np.array([self.left, self.top] * 2, dtype=np.float64)


def centred_letterbox(
    image: npt.NDArray[np.uint8], height: int, width: int
) -> tuple[npt.NDArray[np.uint8], CentredLetterbox]:
    """(H, W, 3) -> (3, height, width), and how it lies there. Of an odd number of rows more padding is below, right."""
    original_height, original_width = image.shape[:2]
    scale = min(height / original_height, width / original_width)
    inner_height, inner_width = max(1, round(original_height * scale)), max(1, round(original_width * scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    scaled = functional.interpolate(pixels, (inner_height, inner_width), mode="bilinear", align_corners=False)
    boxed = np.full((3, height, width), PADDING, dtype=np.uint8)
    boxed[:, top : top + inner_height, left : left + inner_width] = scaled[0].round().byte().numpy()
    return boxed, CentredLetterbox(inner_height, inner_width, left, top, original_height, original_width)


def yolo_batches(
    dataset: CocoDataset, height: int, width: int, *, clipped: bool = True
) -> Iterator[tuple[npt.NDArray[np.uint8], list[CentredLetterbox], list[CocoImage]]]:
    """(1, 3, height, width) uint8, how the image lies in it, and the image."""
    for image in dataset.images:
        pixels, lies = centred_letterbox(dataset.load(image), height, width)
        yield pixels[None], [replace(lies, clipped=clipped)], [image]


def as_input(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


class YoloSession:
    """category_ids: of its classes, in their order."""

    def __init__(self, path: Path, category_ids: tuple[int, ...], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        height, width = ast.literal_eval(metadata["imgsz"])
        names: dict[int, str] = ast.literal_eval(metadata["names"])
        self.info = ModelInfo(height, width, tuple(names[label] for label in range(len(names))), category_ids)
        self.end_to_end: bool = ast.literal_eval(metadata["end2end"])

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        """images: (1, 3, height, width)."""
        return [self._detections(output) for output in self.run_raw(as_input(images))]

    def run_raw(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The graph alone, for timing. images: (1, 3, height, width) in 0..1."""
        outputs: list[Any] = self.session.run(None, {"images": images})
        found: npt.NDArray[np.float32] = outputs[0]
        return found

    def _detections(self, output: npt.NDArray[np.float32]) -> Detections:
        """output: (300, 6) of x0, y0, x1, y1, score, label, or (4 + classes, N) of x, y, width, height, scores."""
        if self.end_to_end:
            output = output[output[:, 4] > SCORE][:MOST]
            return Detections(output[:, :4], output[:, 4], output[:, 5].astype(np.int32))
        boxes, scores, labels = candidates(output)
        kept = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), OVERLAP)[:MOST].numpy()
        return Detections(boxes[kept], scores[kept], labels[kept])


def candidates(
    output: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """(n, 4) xyxy, (n,) scores and (n,) labels of each box and class above the threshold. output: (4 + classes, N)."""
    labels, places = np.nonzero(output[4:] > SCORE)
    centres, sides = output[:2, places].T, output[2:4, places].T
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return boxes, output[4 + labels, places], labels.astype(np.int32)
