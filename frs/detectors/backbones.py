"""Backbones: any timm model that has features of the strides that a pyramid needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from frs.errors import WeightsError

_SOURCES = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
"""timm's options that load something. A name and options may come with a file from anywhere, as "hf-hub:..." may."""


class Backbone(nn.Module):
    """images (B, 3, H, W), normalised -> a map (B, channels[i], H / strides[i], W / strides[i]) for each stride.

    style: "pytorch" (a ResNet's bottleneck strides in its 3x3 convolution, as timm builds it) or "caffe" (in its first 1x1);
    norm_eps: epsilon of every BatchNorm, None for the model's own; mean and std: what the model was trained with, for
    pixels in 0..1. Raises WeightsError for a model that timm does not know, that lacks a stride or that has no such style.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        strides: tuple[int, ...] = (8, 16, 32),
        style: str = "pytorch",
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.options = dict(options)
        reductions = _create(name, options).feature_info.reduction()
        if not set(strides) <= set(reductions):
            raise WeightsError(
                f"backbone {name} has features of strides {reductions}; this detector needs "
                f"{', '.join(map(str, strides[:-1]))} and {strides[-1]}, so choose another"
            )
        # The last feature of each stride: where a model has two, the later one has seen more.
        indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)
        self.body = _create(name, options, out_indices=indices)
        self.channels: list[int] = self.body.feature_info.channels()
        trained = self.body.pretrained_cfg
        self.mean: tuple[float, ...] = trained["mean"]
        self.std: tuple[float, ...] = trained["std"]
        if style == "caffe":
            self._stride_first()
        if norm_eps is not None:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = norm_eps

    def _stride_first(self) -> None:
        """Caffe's ResNet: what timm strides in a bottleneck's conv2 is strided in conv1."""
        bottlenecks = [module for module in self.body.modules() if isinstance(module, Bottleneck)]
        if not bottlenecks:
            raise WeightsError(
                f"backbone {self.name}: backbone_style caffe is about the bottlenecks of a ResNet, and it has none; set "
                "backbone_style to pytorch"
            )
        for block in bottlenecks:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride

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
