"""The layers of an exported file that can be quantised, by the names that they have in the detector."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from frs.errors import ExportError

OPERATORS = ("Conv", "Gemm")
_CHOOSING = ("TopK", "Gather", "GatherElements", "GatherND", "GridSample")
"""Where decoding begins: what comes out of them are boxes and scores, or places of them, no longer a map of features."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer. name: of the module in the detector; group: what it is a part of, such as
    "backbone.layer1" or "class_tower"; nodes: names of the graph's nodes that apply it, one a level of the pyramid where
    the levels share it."""

    name: str
    group: str
    nodes: tuple[str, ...]


def find_layers(model: Any) -> tuple[Layer, ...]:
    """Of an ONNX model as `export_onnx` writes it, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS and node.input[1] in weights:
            name = node.input[1].removeprefix("detector.").removesuffix(".weight")
            nodes.setdefault(name, []).append(node.name)
    return tuple(Layer(name, group_of(name), tuple(names)) for name, names in nodes.items())


def modules(detector: Any) -> list[str]:
    """Names of the layers of a detector in torch: those of the file that it is exported to, and what its backbone has of
    linear layers that are exported as MatMul, which stay in floating point."""
    from torch import nn

    return [name for name, module in detector.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def group_of(name: str) -> str:
    """The part of the detector that a layer belongs to: a stage of the backbone, the pyramid, a tower, an output.

    A backbone's stages are called "layer1", "stages_2" or "s3", or are numbered inside one container ("blocks.4").
    """
    parts = name.split(".")
    if parts[:2] == ["backbone", "body"]:
        numbered = len(parts) > 3 and parts[3].isdigit() and not parts[2][-1:].isdigit()
        return ".".join(["backbone", *parts[2 : 4 if numbered else 3]])
    return ".".join(parts[: 2 if parts[0] in ("rpn", "roi_head") else 1])


def groups(layers: Sequence[Layer]) -> dict[str, tuple[Layer, ...]]:
    """Name -> layers, in their order."""
    names = dict.fromkeys(layer.group for layer in layers)
    return {name: tuple(layer for layer in layers if layer.group == name) for name in names}


def first_layers(model: Any, layers: Sequence[Layer]) -> frozenset[str]:
    """Names of those that see the image: no other layer lies before them."""
    makers = {output: node for node in model.graph.node for output in node.output}
    owner = {node: layer.name for layer in layers for node in layer.nodes}
    found = set()
    for node in model.graph.node:
        if node.name in owner and not _reaches(node.input[:1], makers, owner):
            found.add(owner[node.name])
    return frozenset(found)


def last_layers(model: Any, layers: Sequence[Layer]) -> frozenset[str]:
    """Names of those whose answers are decoded: class, box and centre-ness outputs, of the proposals too."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owner = {node: layer.name for layer in layers for node in layer.nodes}
    return frozenset(
        owner[node.name]
        for node in model.graph.node
        if node.name in owner and not _leads_on(list(node.output), readers, owner)
    )


def _reaches(tensors: Collection[str], makers: dict[str, Any], owner: dict[str, str]) -> bool:
    """Whether a layer lies upstream of the tensors."""
    pending, seen = list(tensors), set(tensors)
    while pending:
        node = makers.get(pending.pop())
        if node is None:
            continue
        if node.name in owner:
            return True
        new = set(node.input) - seen
        seen |= new
        pending += new
    return False


def _leads_on(tensors: Collection[str], readers: dict[str, list[Any]], owner: dict[str, str]) -> bool:
    """Whether a layer lies downstream of the tensors, before decoding begins."""
    pending, seen = list(tensors), set(tensors)
    while pending:
        for node in readers.get(pending.pop(), []):
            if node.name in owner:
                return True
            new = set() if node.op_type in _CHOOSING else set(node.output) - seen
            seen |= new
            pending += new
    return False


def named(patterns: Sequence[str], names: Collection[str]) -> frozenset[str]:
    """Those of the names that a pattern gives, whole or with `*`. Raises ExportError for a pattern that gives none."""
    found: set[str] = set()
    for pattern in patterns:
        these = {name for name in names if fnmatchcase(name, pattern)}
        if not these:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            raise ExportError(
                f"quantize.keep names {pattern!r}, and there is no such layer"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" The layers are {', '.join(names)}; `*` stands for any part of a name"
            )
        found |= these
    return frozenset(found)
