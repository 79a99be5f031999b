"""What the sections of a configuration are made of: their base, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

BACKBONE_SOURCES = ("imagenet", "package:")
"""A `weights` value that begins so is a name; anything else is a file."""


def resolve(path: Path, info: ValidationInfo) -> Path:
    """Relative to the folder of the configuration."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    try:
        return (folder / path.expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself, the home of a user who is none
        raise ValueError(f"cannot be followed ({error}); give another path") from None


def _name_or_file(value: str | Path, info: ValidationInfo) -> str | Path:
    if isinstance(value, str) and value.startswith(BACKBONE_SOURCES):
        return value
    return resolve(Path(value), info)


def _multiple_of_32(value: int) -> int:
    if value % 32:
        raise ValueError("must be a multiple of 32, the stride of the backbone's last stage")
    return value


InputPath = Annotated[Path, AfterValidator(resolve)]
BackboneWeights = Annotated[str | Path, Field(union_mode="left_to_right"), AfterValidator(_name_or_file)]
Side = Annotated[int, Field(ge=64, le=4096), AfterValidator(_multiple_of_32)]
EdgeLength = Annotated[int, Field(ge=32, le=8192)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Ratio = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A mapping in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    how: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how the work is done and nothing of what comes of it: no part of a fingerprint."""
