"""mmdetection's detectors as DETECTORS' rules have them: state dicts of random numbers, and the networks they stand for.

The networks are written with torch's functions on the state dict, under mmdetection's own names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.ops import batched_nms, roi_align

from tests.frs.detectors.published.lab import Found, settle

State = dict[str, Tensor]
WIDTH, DEPTH, CLASSES = 32, 2, 80
STRIDES = (8, 16, 32, 64, 128)


class Mmdet:
    """A state dict being filled with random tensors."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        body = resnet50(weights=None)
        settle(body, body)
        self.state = {
            f"backbone.{name}": tensor for name, tensor in body.state_dict().items() if not name.startswith("fc.")
        }
        self.random = torch.Generator().manual_seed(2)

    def conv(self, name: str, into: int, out: int, side: int = 3, *, bias: bool = True, gain: float = 1.0) -> None:
        fan = into * side * side
        weight = torch.randn(out, into, side, side, generator=self.random) * gain / math.sqrt(fan)
        self.state[f"{name}.weight"] = weight
        if bias:
            self.state[f"{name}.bias"] = torch.randn(out, generator=self.random) * 0.1

    def linear(self, name: str, into: int, out: int, gain: float = 1.0) -> None:
        self.conv(name, into, out, 1, gain=gain)
        self.state[f"{name}.weight"] = self.state[f"{name}.weight"][..., 0, 0]

    def norm(self, name: str) -> None:
        self.state[f"{name}.weight"] = torch.rand(WIDTH, generator=self.random) + 0.5
        self.state[f"{name}.bias"] = torch.randn(WIDTH, generator=self.random) * 0.2

    def neck(self, channels: Sequence[int], extra: Sequence[int]) -> None:
        for i, count in enumerate(channels):
            self.conv(f"neck.lateral_convs.{i}.conv", count, WIDTH, 1, gain=0.3)
            self.conv(f"neck.fpn_convs.{i}.conv", WIDTH, WIDTH)
        for i, count in enumerate(extra):
            self.conv(f"neck.fpn_convs.{len(channels) + i}.conv", count, WIDTH, gain=0.3 if count > WIDTH else 1.0)

    def towers(self, *, norm: bool, bias: bool) -> None:
        for kind in ("cls", "reg"):
            for i in range(DEPTH):
                self.conv(f"bbox_head.{kind}_convs.{i}.conv", WIDTH, WIDTH, bias=bias, gain=1.4)
                if norm:
                    self.norm(f"bbox_head.{kind}_convs.{i}.gn")

    def output(self, name: str, out: int, *, gain: float, mean: float) -> None:
        self.conv(name, WIDTH, out, gain=gain)
        self.state[f"{name}.bias"] += mean

    def scales(self) -> None:
        for i in range(5):
            self.state[f"bbox_head.scales.{i}.scale"] = torch.tensor(0.8 + 0.1 * i)


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def backbone(state: State, x: Tensor, *, caffe: bool) -> list[Tensor]:
    """C2 to C5 of a ResNet-50; caffe: a bottleneck strides in its first convolution."""
    stem = norm(state, "backbone.bn1", F.conv2d(x, state["backbone.conv1.weight"], stride=2, padding=3))
    x = F.max_pool2d(F.relu(stem), 3, 2, 1)
    levels = []
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name = f"backbone.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            first, second = (stride, 1) if caffe else (1, stride)
            y = F.relu(norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, first)))
            y = F.relu(norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y, second)))
            y = norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", y))
            if block == 0:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride))
            x = F.relu(x + y)
        levels.append(x)
    return levels


def neck(
    state: State, maps: list[Tensor], *, on_input: bool = False, relu: bool = False, pool: bool = False
) -> list[Tensor]:
    merged = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for i in range(len(merged) - 1, 0, -1):
        merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[2:], mode="nearest")
    levels = [conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(merged)]
    if pool:
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]
    levels.append(conv(state, "neck.fpn_convs.3.conv", maps[-1] if on_input else levels[-1], 2))
    levels.append(conv(state, "neck.fpn_convs.4.conv", F.relu(levels[-1]) if relu else levels[-1], 2))
    return levels


def tower(state: State, kind: str, x: Tensor) -> Tensor:
    for i in range(DEPTH):
        name = f"bbox_head.{kind}_convs.{i}"
        x = conv(state, f"{name}.conv", x)
        if f"{name}.gn.weight" in state:
            x = F.group_norm(x, 32, state[f"{name}.gn.weight"], state[f"{name}.gn.bias"], eps=1e-5)
        x = F.relu(x)
    return x


def flat(level: Tensor, size: int) -> Tensor:
    """(1, A * size, H, W) -> (H * W * A, size)."""
    return level[0].permute(1, 2, 0).reshape(-1, size)


def places(level: Tensor, stride: int, offset: float) -> Tensor:
    """(H * W, 2) x, y."""
    y, x = torch.meshgrid(torch.arange(level.shape[2]), torch.arange(level.shape[3]), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + offset) * stride


def retina_anchors(level: Tensor, stride: int) -> Tensor:
    """(H * W * 9, 4): ratio by ratio, size by size."""
    sides = []
    for ratio in (0.5, 1.0, 2.0):
        for k in range(3):
            size = 4 * 2 ** (k / 3) * stride
            sides.append([size / math.sqrt(ratio), size * math.sqrt(ratio)])
    half = torch.tensor(sides) / 2
    centre = places(level, stride, 0)[:, None]
    return torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4)


def from_deltas(deltas: Tensor, anchors: Tensor, deviations: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    deltas = deltas * torch.tensor(deviations)
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    limit = math.log(1000 / 16)
    half = size * deltas[:, 2:].clamp(-limit, limit).exp() / 2
    return torch.cat([centre - half, centre + half], dim=1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.stack(
        [
            boxes[:, 0].clamp(0, width),
            boxes[:, 1].clamp(0, height),
            boxes[:, 2].clamp(0, width),
            boxes[:, 3].clamp(0, height),
        ],
        dim=1,
    )


def selected(
    scores: Sequence[Tensor], boxes: Sequence[Tensor], size: tuple[int, int], iou: float, factors: Sequence[Tensor] = ()
) -> Found:
    """Above 0.05 and the best 1,000 a level, without empty boxes, class-wise NMS, 100; factors: on the scores after that."""
    parts = []
    for level, (score, box) in enumerate(zip(scores, boxes, strict=True)):
        best, pair = score.flatten().sort(descending=True)
        pair = pair[:1000][best[:1000] > 0.05]
        place, label = pair // score.shape[1], pair % score.shape[1]
        factor = factors[level][place] if factors else 1.0
        parts.append((clipped(box[place], size), score[place, label] * factor, label))
    box, score, label = (torch.cat(part) for part in zip(*parts, strict=True))
    full = (box[:, 2:] > box[:, :2]).all(dim=1)
    box, score, label = box[full], score[full], label[full]
    kept = batched_nms(box, score, label, iou)[:100]
    return box[kept], score[kept], label[kept]


def rois_pooled(features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """mmdetection's: level by the side against 56 pixels, as many samples as a cell has places, half-pixel centres."""
    side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = torch.floor(torch.log2(side / 56 + 1e-6)).clamp(0, 3).long()
    cells = torch.zeros(len(boxes), features[0].shape[1], 7, 7)
    for i, stride in enumerate((4, 8, 16, 32)):
        if bool((level == i).any()):
            cells[level == i] = roi_align(features[i], [boxes[level == i]], 7, 1 / stride, 0, True)
    return cells
