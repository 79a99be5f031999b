"""docs/configuration.md and docs/cli.md, out of the models and the commands themselves: `make docs`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.config import Config

_MADE = "<!-- Made by `make docs`; do not edit. -->\n\n"

EXAMPLE = """\
version: 1
name: mine
data:
  source: coco
  train: {annotations: annotations/train.json, images: train}
  val: {annotations: annotations/val.json, images: val}
input: {height: 512, width: 512}
teacher:
  detector: {backbone: resnet50, weights: imagenet}
student:
  detector: {backbone: resnet18, weights: imagenet, fpn_channels: 128}
"""

_INTRODUCTION = f"""\
# The configuration

One YAML file says everything about a run. This is a whole one; the keys that are not in it have defaults:

```yaml
{EXAMPLE}```

`frs-pipeline init` writes one for your data set, with a reason beside every choice; `configs/quickstart.yaml` is another
with comments. A relative path is relative to the file. A key that is not known is refused. `--set section.key=value` sets
one on the command line, the value in YAML. `runs/NAME/config.yaml` is the configuration of a run with all its defaults.
"""

_COMMANDS = """\
# The commands

What stands in brackets is optional; what ends in `...` may be repeated. `-h` shows this in the terminal.
"""


def configuration_reference() -> str:
    """The text of docs/configuration.md: a table for every section."""
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    places: dict[str, list[str]] = {}
    _find(schema["properties"], "", definitions, places)
    sections = [_section(paths, definitions[name]) for name, paths in places.items()]
    return "\n".join([_MADE + _INTRODUCTION, _section([], schema), *sections])


def command_reference() -> str:
    """The text of docs/cli.md: usage, meaning and options of every command."""
    from pipeline.cli import main

    root = click.Context(main, info_name="frs-pipeline")
    commands = [_command(context) for context in _commands(root)]
    codes = inspect.cleandoc((main.epilog or "").replace("\b", "")).removeprefix("Exit codes:\n")
    return "\n".join([_MADE + _COMMANDS, _command(root), *commands, "## Exit codes", "", "```", codes, "```", ""])


def _commands(parent: click.Context) -> Iterator[click.Context]:
    """Of a group, and of the groups in it: a group is nothing to give by itself."""
    assert isinstance(parent.command, click.Group)
    for name, each in parent.command.commands.items():
        context = click.Context(each, info_name=name, parent=parent)
        if isinstance(each, click.Group):
            yield from _commands(context)
        else:
            yield context


def _find(keys: dict[str, Any], path: str, definitions: dict[str, Any], places: dict[str, list[str]]) -> None:
    """Fill `places`: the name of a section's model -> the dotted keys at which it stands."""
    for key, value in keys.items():
        for name in _references(value):
            places.setdefault(name, []).append(path + key)
            _find(definitions[name]["properties"], f"{path}{key}.", definitions, places)


def _references(value: dict[str, Any]) -> list[str]:
    if "$ref" in value:
        return [value["$ref"].rpartition("/")[2]]
    members = [*value.get("oneOf", ()), *value.get("anyOf", ())]
    return [name for member in members for name in _references(member)]


def _section(paths: Sequence[str], section: dict[str, Any]) -> str:
    """paths: where it stands; none for the file itself."""
    keys: dict[str, Any] = section["properties"]
    title = ", ".join(f"`{path}`" for path in paths) or "The file"
    kind = next((key for key in ("source", "family") if key in keys), None)
    if kind is not None:
        title += f" with `{kind}: {keys[kind]['const']}`"
    # Where one key has several sections, its anchor leads to the first.
    own = [] if kind is not None and keys[kind]["const"] not in ("trees", "retinanet") else paths
    anchors = "".join(f'<a id="{path}"></a>' for path in own)
    prefix = f"{paths[0]}." if paths else ""
    rows = [_row(key, value, prefix, key in section.get("required", ())) for key, value in keys.items()]
    table = _table(("key", "type", "default", "meaning"), rows)
    return "\n".join([f"## {anchors}{title}", "", section["description"], "", table])


def _row(key: str, value: dict[str, Any], prefix: str, required: bool) -> tuple[str, ...]:
    if _references(value):
        optional = "default" in value and value["default"] is None
        kind = f"[section](#{prefix}{key})" + (" or `null`" if optional else "")
        default = "`null`" if optional else "its defaults"
    else:
        kind, default = _kind(value), f"`{_shown(value.get('default'))}`"
    return f"`{key}`", kind, "required" if required else default, value["description"]


def _kind(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"])
    if "const" in value:
        return f"`{_shown(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{each}`" for each in value["enum"])
    if value["type"] == "array":
        items = value.get("prefixItems")
        least = f", at least {value['minItems']}" if "minItems" in value and not items else ""
        return f"[{', '.join(_kind(each) for each in items)}]" if items else f"[{_kind(value['items'])}, ...]{least}"
    names = {"boolean": "`true` or `false`", "null": "`null`", "object": "mapping", "string": "text"}
    name = "path" if value.get("format") == "path" else names.get(value["type"], value["type"])
    if "pattern" in value:
        return f"{name} like `{value['pattern']}`"
    if "minimum" in value and "maximum" in value:
        return f"{name}, {_shown(value['minimum'])} to {_shown(value['maximum'])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f" {sign} {_shown(value[key])}" for key, sign in signs.items() if key in value]
    return name + ",".join(limits)


def _shown(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _command(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    table = _table(("option", "meaning"), [(f"`{names}`", text) for names, text in records])
    return "\n".join(
        [f"## {context.command_path}", "", "```", usage, "```", "", inspect.cleandoc(command.help or ""), "", table]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "configuration.md").write_text(configuration_reference(), encoding="utf-8")
    (folder / "cli.md").write_text(command_reference(), encoding="utf-8")
