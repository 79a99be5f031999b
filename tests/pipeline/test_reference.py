"""The reference is what the code says now, its example works, and nothing goes without a word of explanation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from pipeline.cli import main
from pipeline.config import Config
from pipeline.loading import load_config
from pipeline.reference import command_reference, configuration_reference

DOCS = Path(__file__).parents[2] / "docs"


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in sections(field.annotation):
            yield from models(inner)


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


def test_the_committed_pages_are_those_that_are_made() -> None:
    for file, made in (("configuration.md", configuration_reference()), ("cli.md", command_reference())):
        assert (DOCS / file).read_text(encoding="utf-8") == made, f"docs/{file} is out of date; run make docs"


def test_every_key_is_explained() -> None:
    text = configuration_reference()
    for model in set(models(Config)):
        assert (model.__doc__ or "nothing") in text
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key} has no description"
            assert any(line.startswith(f"| `{key}` | ") for line in text.splitlines())


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", configuration_reference(), re.DOTALL)
    assert example
    (tmp_path / "mine.yaml").write_text(example[1])
    assert load_config(tmp_path / "mine.yaml").student.detector.fpn_channels == 128


def test_every_link_leads_somewhere() -> None:
    text = configuration_reference()
    anchors = re.findall(r'<a id="([^"]+)">', text)
    assert len(anchors) == len(set(anchors))
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert {"data.train", "teacher.train.augment", "student.detector", "gates"} <= links <= set(anchors)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("| `octaves` | integer, 1 to 5 | `3` |", "both bounds"),
        ("| `lr` | number > 0, ≤ 1 | `0.001` |", "one of them excluded"),
        ("| `clip` | number > 0 or `null` | `10` |", "optional"),
        ("| `alpha` | number ≥ 0 or `auto` | `auto` |", "a number or a word"),
        ("| `scale` | [number, number] or `null` | `null` |", "a pair"),
        ("| `precisions` | [`fp32` or `fp16`, ...], at least 1 | `[fp32, fp16]` |", "a list"),
        ("| `backbone_options` | mapping | `{}` |", "a mapping"),
        ("| `annotations` | path | required |", "required"),
    ],
)
def test_a_row_says_type_and_default(row: str, why: str) -> None:
    assert row in configuration_reference(), why


def commands() -> dict[str, click.Command]:
    return {"frs-pipeline": main, **main.commands}


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_a_sentence_of_help(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert command.help.rstrip().endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert parameter.help.endswith(".")
            assert parameter.help[0].isupper()
        else:
            shown = parameter.human_readable_name.rstrip(".")
            assert shown in command.help, f"{name} does not say what {shown} is"


def test_the_reference_has_the_usage_that_help_shows() -> None:
    text = command_reference()
    device = main.commands["device"]
    assert isinstance(device, click.Group)
    inner = {f"device {name}": command for name, command in device.commands.items()}
    for name, command in {**main.commands, **inner}.items():
        if command is not device:
            usage = command.get_usage(click.Context(command, info_name=f"frs-pipeline {name}"))
            assert usage.removeprefix("Usage: ") in text.splitlines()
