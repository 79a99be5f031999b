"""The second stage of Faster R-CNN (Girshick, "Fast R-CNN", 2015; Lin et al. 2017, section 4.2): a class and a finer box
for each proposal.

pooled (R, C, 7, 7) -> two fully connected layers, or four convolutions and one -> class logits (R, K + 1), background last,
and box regression (R, K, 4), a box for each class
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from frs.detectors.base import Targets
from frs.detectors.boxes import decode, encode
from frs.detectors.losses import box_distance
from frs.detectors.matching import match
from frs.detectors.roi_align import SIZE
from frs.detectors.sampling import sample
from frs.distributed import normaliser

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
"""What the coded boxes are divided by, so that their loss weighs as much as the classes'."""


@dataclass
class Samples:
    """Proposals to learn from: image (R,), boxes (R, 4), label (R,) int64, K for background; object: (R, 4), the annotated
    box that a positive one is to find, meaningless for background."""

    image: Tensor
    boxes: Tensor
    label: Tensor
    object: Tensor


class RoIHead(nn.Module):
    """width: of the fully connected layers; kind: "fc" (two of them), or "conv" (four 3x3 convolutions with BatchNorm, as
    wide as the pyramid, and one of them: torchvision's second Faster R-CNN); conventions: "mmdet" or "torchvision"."""

    def __init__(self, channels: int, classes: int, width: int, *, kind: str, conventions: str) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        for _ in range(4 if kind == "conv" else 0):
            convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            convolutions += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*convolutions)
        layers: list[nn.Module] = [nn.Linear(channels * SIZE * SIZE, width), nn.ReLU(inplace=True)]
        if kind == "fc":
            layers += [nn.Linear(width, width), nn.ReLU(inplace=True)]
        self.fc = nn.Sequential(*layers)
        self.class_output = nn.Linear(width, classes + 1)
        self.box_output = nn.Linear(width, classes * 4)
        self.classes = classes
        self.torchvision = conventions == "torchvision"
        for layer in self.fc:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for output, deviation in ((self.class_output, 0.01), (self.box_output, 0.001)):
            nn.init.normal_(output.weight, std=deviation)
            nn.init.zeros_(output.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc(self.tower(pooled).flatten(1))
        return self.class_output(hidden).float(), self.box_output(hidden).float().unflatten(1, (self.classes, 4))

    @torch.no_grad()
    def samples(self, proposals: Tensor, present: Tensor, targets: Targets) -> Samples:
        """Of each image 512 of its proposals (B, P, 4), `present` (B, P), and of its objects' own boxes, a quarter of them
        positive at most: those with an IoU of at least 0.5 with an object."""
        boxes = torch.cat([proposals, targets.boxes], dim=1)
        present = torch.cat([present, targets.valid], dim=1)
        matches = match(boxes, targets, positive_iou=0.5, negative_iou=0.5, best_iou=None)
        positive, negative = sample(
            matches.positive & present, matches.negative & present, count=512, positive_fraction=0.25
        )
        image, place = (positive | negative).nonzero(as_tuple=True)
        found = positive[image, place]
        label = torch.full_like(image, self.classes)
        wanted = boxes[image, place]
        of = image[found], matches.box[image, place][found]
        label[found] = targets.labels[of]
        wanted[found] = targets.boxes[of]
        return Samples(image, boxes[image, place], label, wanted)

    def loss(self, logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Tensor]:
        """Cross entropy of all samples and the positives' box loss, both divided by the samples."""
        total = normaliser(torch.ones_like(samples.label).sum())
        found = samples.label < self.classes
        coded = encode(samples.object[found], samples.boxes[found]) / deltas.new_tensor(DEVIATIONS)
        distance = box_distance(deltas[found, samples.label[found]], coded, smooth=self.torchvision)
        return {
            "classification": cross_entropy(logits, samples.label, reduction="sum") / total,
            "box": distance.sum() / total,
        }

    def boxes(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """(..., 4) both -> (..., 4) xyxy, not clipped."""
        deltas = deltas * deltas.new_tensor(DEVIATIONS)
        return decode(deltas, proposals, bounded_below=not self.torchvision)
