"""`teacher.checkpoint`: a file of ours, or a detector that torchvision or mmdetection trained."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from pipeline.section import Section, resolve

TORCHVISION_NAMES = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
"""What torchvision downloads by name."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that another library wrote: `torchvision:NAME`, `torchvision:FILE` or `mmdet:FILE`."""

    library: Literal["torchvision", "mmdet"]
    name: str | None = None
    file: Path | None = None

    @property
    def source(self) -> str | Path:
        """What the loader takes."""
        return self.name or self.file or ""

    def __str__(self) -> str:
        return f"{self.library}:{self.source}"


def _parse(value: Any, info: ValidationInfo) -> Path | Published:
    if isinstance(value, (Path, Published)):
        return value if isinstance(value, Published) else resolve(value, info)
    if not isinstance(value, str):
        raise ValueError("expected a file, torchvision:NAME, torchvision:FILE or mmdet:FILE")
    library, colon, rest = value.partition(":")
    if not colon or library not in ("torchvision", "mmdet"):
        return resolve(Path(value), info)
    if library == "torchvision" and rest in TORCHVISION_NAMES:
        return Published(library="torchvision", name=rest)
    if library == "torchvision" and not {".", "/"} & set(rest):
        near = difflib.get_close_matches(rest, TORCHVISION_NAMES, n=1)
        meant = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(TORCHVISION_NAMES)}"
        raise ValueError(f"torchvision publishes no such detector; {meant}")
    if not rest:
        raise ValueError(f"expected a file after {library}:")
    return Published(library="torchvision" if library == "torchvision" else "mmdet", file=resolve(Path(rest), info))


Checkpoint = Annotated[
    Path | Published,
    PlainValidator(_parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "format": "path"}),
]


class AssumedConfig(Section):
    """What a published checkpoint's tensors do not tell. null: what the file says, or else the library's usual value."""

    norm_eps: float | None = Field(None, ge=0, lt=1, description="epsilon of the backbone's BatchNorms")
    backbone_style: Literal["pytorch", "caffe"] | None = Field(None, description="see `backbone_style` of a detector")
    channel_order: Literal["rgb", "bgr"] | None = Field(None, description="what the network is fed")
    pixel_mean: tuple[float, float, float] | None = Field(
        None, description="subtracted from pixels in 0..255, in that order of channels"
    )
    pixel_std: tuple[float, float, float] | None = Field(None, description="what they are divided by then")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="names in the order of the outputs, without a background"
    )
