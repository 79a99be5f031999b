"""What a bundle brings to be compared with: annotations, and torch's detections. Nothing in them is trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frs.edge.bundle import Bundle
from frs.errors import BundleError

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.evaluation import Row

_KEYS = {"image_id", "category_id", "bbox", "score"}


@dataclass(frozen=True)
class Reference:
    """rows, accuracy: model -> torch's detections, and their AP on the bundled images; the teacher comes first."""

    data: CocoDataset
    rows: Mapping[str, Sequence[Row]]
    accuracy: Mapping[str, dict[str, Any]]


def read_reference(bundle: Bundle) -> Reference:
    """Raises BundleError or DataError for what cannot be compared with."""
    from frs.data import read_coco
    from frs.evaluation import evaluate

    about = bundle.about
    data = read_coco(bundle.annotations, bundle.images)
    categories = [(category.id, category.name) for category in data.categories]
    if categories != list(zip(about.category_ids, about.classes, strict=True)) or not _usable(about.thresholds):
        raise BundleError(
            f"{bundle.annotations}: its categories or thresholds are not the manifest's; make the bundle again"
        )
    models = sorted(
        {str(member.model) for member in bundle.of_kind("onnx")}, key=lambda model: (model != "teacher", model)
    )
    rows = {model: _rows(bundle.reference(model)) for model in models}
    return Reference(data, rows, {model: evaluate(bundle.annotations, rows[model]).to_json() for model in models})


def _usable(thresholds: Mapping[str, float]) -> bool:
    return 0 <= thresholds.get("score_threshold", -1) <= 1 and thresholds.get("detections", 0) >= 1


def _rows(path: Path) -> list[Row]:
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(rows, list) and all(_is_row(row) for row in rows):
            return rows
    except (ValueError, RecursionError):
        pass
    raise BundleError(f"{path}: no list of detections as COCO's result files have them; make the bundle again")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and set(row) == _KEYS
        and all(type(row[key]) is int for key in ("image_id", "category_id"))
        and isinstance(row["bbox"], list)
        and len(row["bbox"]) == 4
        and all(
            type(value) in (int, float) and abs(value) <= sys.float_info.max for value in (*row["bbox"], row["score"])
        )
    )
