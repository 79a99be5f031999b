"""mmdetection's configuration, which its checkpoints carry as Python text: read, never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

_LONGEST = 1_000_000
_DEEPEST = 100
"""Characters, and brackets within brackets: what the parser is trusted with."""


def read_config(text: str) -> dict[str, Any]:
    """The variables that are set to plain data: numbers, texts, lists, dictionaries, dict(...). All else is left out.

    Raises ValueError for text that is no Python.
    """
    if len(text) > _LONGEST or _depth(text) > _DEEPEST:
        raise ValueError("it is too long or too deep")
    try:
        statements = ast.parse(text).body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no Python ({type(error).__name__})") from None
    return {
        target.id: _plain(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """The value under a dotted path, or None."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _plain(node: ast.expr) -> Any:
    """None for what is no plain data."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _plain(node.operand)
        return -value if isinstance(value, (int, float)) else None
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_plain(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return {
            key.value: _plain(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    return None
