"""From a YAML file and `--set` overrides to a `Config`, or to one error that names every fault."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.errors import ConfigError


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
        faults = [_sentence(fault) for fault in error.errors(include_url=False)]
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise ConfigError("\n  ".join([f"{path}: {count} in the configuration", *faults])) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections (name, data, teacher, ...), got {_shown(raw)}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: expected key.subkey=value, e.g. --set student.train.epochs=12")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {_one_line(error)}") from None
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    node[parts[-1]] = value


def _sentence(fault: Any) -> str:
    location = [part for part in fault["loc"] if part not in ("trees", "coco")]
    key = ".".join(str(part) for part in location) or "the file"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _fields(location[:-1]), n=1)
        return f"{key}: unknown key" + (f'; did you mean "{near[0]}"?' if near else "")
    if fault["type"] == "missing":
        return f"{key}: missing; this key has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], (dict, BaseModel)):
        return message if key == "the file" else f"{key}: {message}"
    return f"{key}: got {_shown(fault['input'])}; {message[:1].lower()}{message[1:]}"


def _fields(location: Sequence[Any]) -> list[str]:
    """The keys that the models at this place of the configuration know."""
    models: list[type[BaseModel]] = [Config]
    for part in location:
        models = [
            inner
            for model in models
            if part in model.model_fields
            for inner in _models(model.model_fields[part].annotation)
        ]
    return [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _models(argument)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
