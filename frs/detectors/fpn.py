"""Feature pyramid network (Lin et al. 2017), with RetinaNet's extra levels or Faster R-CNN's: nearest upsampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, relu


class FPN(nn.Module):
    """The backbone's maps -> one level for each and further ones, `levels` in all: (B, channels, H / stride, W / stride).

    p6_source: "c5" (mmdetection's RetinaNet) or "p5", by convolutions of stride 2; or "pool", every second place of P5
    (Faster R-CNN); relu_before_p7: as the RetinaNet paper has it; mmdetection has not; norm: "none", or "batch" for a
    BatchNorm behind each convolution, which then has no bias (torchvision's second Faster R-CNN).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        levels: int,
        p6_source: str,
        relu_before_p7: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_convolution(c, channels, 1, norm) for c in in_channels)
        self.output = nn.ModuleList(_convolution(channels, channels, 3, norm) for _ in in_channels)
        self.pooled = levels - len(in_channels) if p6_source == "pool" else 0
        sources = [in_channels[-1] if p6_source == "c5" else channels, channels]
        self.extra = nn.ModuleList(
            nn.Conv2d(c, channels, 3, stride=2, padding=1) for c in sources[: levels - len(in_channels) - self.pooled]
        )
        self.p6_source = p6_source
        self.relu_before_p7 = relu_before_p7
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        merged = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        levels = [output(level) for output, level in zip(self.output, merged, strict=True)]
        top = stages[-1] if self.p6_source == "c5" else levels[-1]
        for i, convolution in enumerate(self.extra):
            top = convolution(relu(top) if i == 1 and self.relu_before_p7 else top)
            levels.append(top)
        for _ in range(self.pooled):
            levels.append(max_pool2d(levels[-1], 1, stride=2))
        return levels


def _convolution(channels: int, width: int, side: int, norm: str) -> nn.Module:
    convolution = nn.Conv2d(channels, width, side, padding=side // 2, bias=norm == "none")
    return nn.Sequential(convolution, nn.BatchNorm2d(width)) if norm == "batch" else convolution
