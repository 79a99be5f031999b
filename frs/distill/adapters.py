"""phi: one 3x3 convolution a level, from the student's channels to the teacher's."""

from __future__ import annotations

from torch import Tensor, nn


class Adapters(nn.Module):
    """[(B, student_channels, H, W)] -> [(B, teacher_channels, H, W)]; stride 1, padding 1, bias, no activation.

    Trained with the student and thrown away afterwards.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, levels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(student_channels, teacher_channels, 3, padding=1) for _ in range(levels)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [convolution(level) for convolution, level in zip(self.convolutions, features, strict=True)]
