"""What describes a detector completely, and travels with its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

Spec = TypeVar("Spec", bound="DetectorSpec")


@dataclass(frozen=True)
class DetectorSpec:
    """What the families have in common; each adds its own fields, and the limits of those in `_check_own`.

    fpn_channels, head_channels: widths (None: as the pyramid); levels: pyramid levels, of which the first has the stride
    `finest`; head_depth: convolutions in each tower; pixel_mean, pixel_std: for pixels in 0..255 (None: what the backbone
    was trained with), in channel_order ("rgb" or "bgr": what the network is fed; images are RGB); backbone_style, norm_eps:
    see `Backbone`.
    """

    family: ClassVar[str]
    finest: ClassVar[int] = 8
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    backbone: str
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    fpn_channels: int = 256
    levels: int = 5
    head_channels: int | None = None
    head_depth: int = 4
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    channel_order: str = "rgb"
    backbone_style: str = "pytorch"
    norm_eps: float | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.finest * 2**i for i in range(self.levels))

    @property
    def backbone_strides(self) -> tuple[int, ...]:
        """Of the backbone's maps that the pyramid is built on."""
        return tuple(stride for stride in (4, 8, 16, 32) if stride >= self.finest)

    @property
    def anchors_per_location(self) -> int:
        """A: how many answers the head gives at each place of a level."""
        return 1

    def to_json(self) -> str:
        return json.dumps({"family": self.family, **asdict(self)})

    @classmethod
    def from_json(cls: type[Spec], text: str) -> Spec:
        """Raises KeyError, TypeError or ValueError for text that is no spec of this family."""
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("family") != cls.family:
            raise ValueError("another family")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        spec = cls(**values)
        spec._check()
        return spec

    def _check(self) -> None:
        """Raises ValueError for what no configuration could have asked for: a small file must not ask for much memory."""
        check_ranges(
            fpn_channels=(self.fpn_channels, 8, 1024),
            levels=(self.levels, 3, 5),
            head_channels=(8 if self.head_channels is None else self.head_channels, 8, 1024),
            head_depth=(self.head_depth, 0, 8),
            classes=(len(self.classes), 1, 10_000),
        )
        check_numbers("normalisation", (*(self.pixel_mean or ()), *(self.pixel_std or ()), self.norm_eps or 0.0))
        if any(len(values) != 3 for values in (self.pixel_mean, self.pixel_std) if values is not None):
            raise ValueError(f"pixel_mean {self.pixel_mean} or pixel_std {self.pixel_std}: expected three numbers")
        check_choices(
            channel_order=(self.channel_order, ("rgb", "bgr")),
            backbone_style=(self.backbone_style, ("pytorch", "caffe")),
        )
        names = (*self.classes, self.backbone)
        if not all(isinstance(name, str) for name in names) or not all(type(key) is int for key in self.category_ids):
            raise ValueError("classes and backbone must be names, category_ids integers")
        if len(self.classes) != len(self.category_ids) or not isinstance(self.backbone_options, Mapping):
            raise ValueError("classes and category_ids must be as many, backbone_options a mapping")
        self._check_own()

    def _check_own(self) -> None:
        """The fields that a family adds."""


def check_ranges(**sizes: tuple[Any, int, int]) -> None:
    """name=(value, least, most). Raises ValueError for a value that is no integer between them."""
    for name, (value, least, most) in sizes.items():
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name}: got {value!r}, expected {least} to {most}")


def check_numbers(what: str, numbers: tuple[Any, ...]) -> None:
    """Raises ValueError for what is not a number from 0 to a million."""
    if not all(type(value) in (int, float) and 0 <= value < 1e6 for value in numbers):
        raise ValueError(f"{what}: got {numbers}, expected numbers")


def check_choices(**choices: tuple[Any, tuple[str, ...]]) -> None:
    """name=(value, allowed). Raises ValueError for a value that is not allowed."""
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(allowed)}")
