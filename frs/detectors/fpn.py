"""Feature pyramid network (Lin et al. 2017), with RetinaNet's extra levels: no norm, nearest upsampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu


class FPN(nn.Module):
    """[C3, C4, C5] -> [P3, P4, P5, P6, ...], `levels` of them, each (B, channels, H / stride, W / stride).

    p6_source: "c5" (mmdetection's RetinaNet) or "p5"; relu_before_p7: as the RetinaNet paper has it; mmdetection has not.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, *, levels: int, p6_source: str, relu_before_p7: bool
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        sources = [in_channels[-1] if p6_source == "c5" else channels, channels]
        self.extra = nn.ModuleList(
            nn.Conv2d(c, channels, 3, stride=2, padding=1) for c in sources[: levels - len(in_channels)]
        )
        self.p6_source = p6_source
        self.relu_before_p7 = relu_before_p7
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
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
        return levels
