"""Backbones: any timm model that has features of stride 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from frs.errors import WeightsError

STRIDES = (8, 16, 32)
_SOURCES = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
"""timm's options that load something. A name and options may come with a file from anywhere, as "hf-hub:..." may."""


class Backbone(nn.Module):
    """images (B, 3, H, W), normalised -> [C3, C4, C5], (B, channels[i], H / 8 / 2^i, W / 8 / 2^i).

    mean and std: what the model was trained with, for pixels in 0..1. Raises WeightsError for a model that timm does not
    know or that lacks a stride.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.options = dict(options)
        reductions = _create(name, options).feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise WeightsError(
                f"backbone {name} has features of strides {reductions}; a detector needs 8, 16 and 32, so choose another"
            )
        # The last feature of each stride: where a model has two, the later one has seen more.
        indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        self.body = _create(name, options, out_indices=indices)
        self.channels: list[int] = self.body.feature_info.channels()
        trained = self.body.pretrained_cfg
        self.mean: tuple[float, ...] = trained["mean"]
        self.std: tuple[float, ...] = trained["std"]

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.body(images)
        return levels


def _create(name: str, options: Mapping[str, Any], **more: Any) -> Any:
    try:
        if not timm.is_model(name):
            raise ValueError("there is no such model")
        if not _SOURCES.isdisjoint(options):
            raise ValueError(f"{', '.join(sorted(_SOURCES & set(options)))} would load a file; see `weights`")
        return timm.create_model(name, pretrained=False, features_only=True, **options, **more)
    except Exception as error:  # whatever the models raise at options that they do not expect
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise WeightsError(
            f"backbone {name}: timm cannot make it ({' '.join(str(error).split())[:200]})"
            + (f"; similar names: {near}" if near else "; see timm.list_models()")
        ) from None
