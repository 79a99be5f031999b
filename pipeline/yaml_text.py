"""YAML from a stranger: plain values only, no key twice, and nothing that a few lines can blow up."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from pipeline.errors import ConfigError

_VALUES = 10_000
"""In one text, aliases counted as often as they are used; the longest of our configurations has 200."""
_PREFIX = "tag:yaml.org,2002:"
_PLAIN = {
    _PREFIX + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}


def parse_yaml(text: str, source: str) -> Any:
    """The value of a text: dictionaries, lists and scalars. Aliases and merge keys (`<<: *base`) are resolved.

    No two places share a list or a dictionary, so that a change of one is no change of another. Raises ConfigError, which
    begins with `source`, for what is not YAML, a tag, a key that stands twice in one mapping, and for a text that is
    nested too deeply or that its aliases make too large.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, set())
        return _unshared(loader.construct_document(node))
    except _Refused as error:
        message = str(error)
    except yaml.MarkedYAMLError as error:
        message = f"not valid YAML: {_place(error)}{error.problem or error.context}"
    except RecursionError:
        message = "nested too deeply; a configuration has a handful of levels"
    except yaml.reader.ReaderError as error:
        message = f"not valid YAML: character {error.position + 1} is U+{error.character:04X}, which no text holds"
    except Exception as error:  # PyYAML lets out whatever it meets in a scalar that is not of its tag: `!!int ''`
        message = f"a value cannot be read ({type(error).__name__}: {error}); write it plainly"
    raise ConfigError(f"{source}: {message}")


class _Refused(Exception):
    """YAML, but not what a configuration may be."""


def _check(node: Node, sizes: dict[Node, int], above: set[Node]) -> int:
    """How many values a node stands for; counted in one visit to each node, however often aliases name it."""
    if node.tag not in _PLAIN:
        tag = node.tag.replace(_PREFIX, "!!")
        raise _Refused(f"line {_line(node)}: the tag {tag} is not read; write a plain value in its place")
    if isinstance(node, ScalarNode):
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise _Refused(f"line {_line(node)}: half of a surrogate pair is no character; correct the escape")
        return 1
    if node in above:
        raise _Refused(f"line {_line(node)}: what is named here contains itself; write the value out")
    if node not in sizes:
        if isinstance(node, MappingNode):
            _check_keys(node)
            inner = [child for pair in node.value for child in pair]
        else:
            inner = node.value
        sizes[node] = 1 + sum(_check(child, sizes, above | {node}) for child in inner)
    if sizes[node] > _VALUES:
        raise _Refused(
            f"line {_line(node)}: more than {_VALUES:,} values, counting each alias as what it stands for; no configuration "
            "is so large"
        )
    return sizes[node]


def _check_keys(mapping: MappingNode) -> None:
    """A key that is there twice is against YAML's rules; PyYAML takes the last and says nothing."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if isinstance(key, ScalarNode):
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                raise _Refused(
                    f"line {_line(key)}: the key {key.value[:60]} is there already in line {first}; remove one of them"
                )
            lines[key.tag, key.value] = _line(key)


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unshared(inner) for inner in value]
    return value


def _line(node: Node) -> int:
    line: int = node.start_mark.line
    return line + 1


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
