"""From a YAML file and `--set` overrides to a `Config`, or to one error that names every fault."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.yaml_text import parse_yaml

_BYTES = 100_000
"""Of a configuration; the longest of ours has 5,000."""
_SHOWN = 50
_TAGS = ("trees", "coco", "retinanet", "fcos", "gfl", "faster_rcnn")
"""What pydantic puts into a place to name the member of a union."""
_EXPECTED = {
    "dict_type": "expected a section, with keys of its own",
    "missing": "it has too few values",
    "model_attributes_type": "expected a section, with keys of its own",
    "model_type": "expected a section, with keys of its own",
    "path_type": "expected a path",
    "too_long": "it has too many values",
    "too_short": "it has too few values",
    "tuple_type": "expected a list",
}
"""What pydantic says of these speaks of Python's types."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    `overrides` are `key.subkey=value` strings, the value in YAML. Relative paths, in an override too, are
    relative to the file.
    Raises ConfigError with all faults at once.
    """
    raw = _read(path)
    for override in overrides:
        _apply(raw, override)
    try:
        return Config.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        sentences = list(_sentences(error))
    count = f"{len(sentences)} fault{'s' if len(sentences) > 1 else ''}"
    more = [f"and {len(sentences) - _SHOWN} more"] if len(sentences) > _SHOWN else []
    raise ConfigError("\n  ".join([f"{path}: {count} in the configuration", *sentences[:_SHOWN], *more]))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
        if len(content) > _BYTES:
            raise ConfigError(f"{path}: more than {_BYTES:,} bytes, so no configuration; give the path of a YAML file")
        text = content.decode()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file system has
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None
    raw = parse_yaml(text, str(path))
    if raw is None:
        raise ConfigError(f"{path}: the file is empty; expected sections (name, data, teacher, ...)")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections (name, data, teacher, ...), got {_shown(raw)}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected key.subkey=value, e.g. --set student.train.epochs=12")
    value = parse_yaml(text, f"--set {_cut(override)}")
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    node[parts[-1]] = value


def _sentences(error: ValidationError) -> Iterator[str]:
    """One for each place: what the members of a union say of one value is said together."""
    said: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        if fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]:
            continue  # each value that does not count has a fault of its own
        start, expected = _explained(fault)
        said.setdefault(start, []).append(expected)
    for start, expectations in said.items():
        yield start + ", or ".join(dict.fromkeys(expectations))


def _explained(fault: Any) -> tuple[str, str]:
    """Where it is and what was found there; what was expected."""
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    location = _known([part for part in fault["loc"] if part not in _TAGS], kind)
    key = ".".join(_cut(str(part)) for part in location)
    got = f"{key or 'the file'}: got {_shown(value)}; "
    message = fault["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _fields(location[:-1]), n=1)
        return f"{key}: unknown key; ", f'did you mean "{near[0]}"?' if near else "remove it or correct its name"
    if kind == "missing" and isinstance(location[-1], str):
        return f"{key}: missing; ", "this key has no default"
    if kind.startswith("union_tag"):
        key = f"{key}.{context['discriminator'][1:-1]}"
        if "tag" not in context:
            return f"{key}: missing; ", "this key has no default"
        return f"{key}: got {_shown(context['tag'])}; ", f"expected one of {context['expected_tags']}"
    if kind == "string_pattern_mismatch":
        described = _fields(location[:-1])[str(location[-1])].description
        return got, f"expected {context['pattern']}" + (f" ({described})" if described else "")
    if kind == "value_error" and isinstance(value, (dict, BaseModel)):
        return f"{key}: " if key else "", message
    return got, _EXPECTED.get(kind) or message[:1].lower() + message[1:]


def _known(location: list[Any], kind: str) -> list[Any]:
    """A place without what pydantic adds to it: the member of a union, the keys inside a free mapping."""
    known: list[Any] = []
    for part in location:
        strange = part not in _fields(known) and not isinstance(part, int)
        if strange and kind != "extra_forbidden":
            break
        known.append(part)
    return known


def _fields(location: Sequence[Any]) -> dict[str, FieldInfo]:
    """What the models at this place of the configuration know."""
    models: list[type[BaseModel]] = [Config]
    for part in location:
        models = [
            inner
            for model in models
            if part in model.model_fields
            for inner in _models(model.model_fields[part].annotation)
        ]
    return {name: field for model in models for name, field in model.model_fields.items()}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _models(argument)


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
