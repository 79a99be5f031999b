"""What an exported file says about itself: string properties of the ONNX model, the same for writer and reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from frs.edge.predictor import ModelInfo
from frs.errors import ExportError

PRODUCER = "frs-pipeline"
FORMAT = 1
"""Raised when a reader of the older format would misunderstand the graph."""


@dataclass(frozen=True)
class GraphMetadata:
    """All that a consumer of the file needs besides the graph.

    category_ids[i] is the data set's id of the contiguous label i, whose name is classes[i]; padding: grey value around
    the letterboxed image; candidates, rounds, detections: of the NMS inside; version: of the producer.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    height: int
    width: int
    padding: int
    candidates: int
    rounds: int
    detections: int
    score_threshold: float
    iou_threshold: float
    precision: str
    version: str

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.height, self.width, self.classes, self.category_ids)

    def to_properties(self) -> dict[str, str]:
        """Every value as JSON, and the two keys by which the file is known."""
        values: dict[str, Any] = {"producer": PRODUCER, "format": FORMAT, **asdict(self)}
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], path: Path) -> GraphMetadata:
        """Raises ExportError for a file of another producer or format, and for a key that is missing or malformed."""
        if properties.get("producer") != json.dumps(PRODUCER):
            raise ExportError(
                f"{path}: {PRODUCER} did not export it (no such producer in its metadata); give a file that a run wrote, such "
                "as student.onnx"
            )
        if properties.get("format") != json.dumps(FORMAT):
            raise ExportError(
                f"{path}: metadata format {properties.get('format')}, this version reads {FORMAT}; export the file again"
            )
        types = {field.name: str(field.type) for field in fields(cls)}
        missing = [name for name in types if name not in properties]
        if missing:
            raise ExportError(f"{path}: its metadata lacks {', '.join(missing)}; export the file again")
        values = {name: _parse(properties[name], kind, f"{path}: metadata {name}") for name, kind in types.items()}
        if len(values["classes"]) != len(values["category_ids"]):
            raise ExportError(
                f"{path}: {len(values['classes'])} class names and {len(values['category_ids'])} category ids in its "
                "metadata; export the file again"
            )
        return cls(**values)


def _parse(text: str, kind: str, where: str) -> Any:
    fault = ExportError(f"{where} is {text[:80]!r}, expected {kind}; export the file again")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be written nowhere
    except (ValueError, RecursionError):
        raise fault from None
    if kind.startswith("tuple"):
        item = str if "str" in kind else int
        if not isinstance(value, list) or not all(type(entry) is item for entry in value):
            raise fault
        return tuple(value)
    if type(value) is not {"int": int, "float": float, "str": str}[kind] and not (kind == "float" and value in (0, 1)):
        raise fault
    return value
