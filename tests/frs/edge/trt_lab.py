"""A plan for a device that is not there, and the pictures it is asked about."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from frs.edge.predictor import Detections
from frs.edge.sidecar import sidecar_path
from tests.frs.edge.test_sidecar import GOOD
from tests.frs.export.lab import pictures

IMAGES = pictures(4, 64, 96)
BATCHES = {"fixed": 2, "open": None}
DEVICE_BYTES = 4 * (3 * 64 * 96 + 100 * (16 + 4 + 4) + 4)
"""Of the buffers for four images: pixels; boxes, scores and labels of 100 detections; their number."""


def plan_of(onnx_file: Path, folder: Path, **changes: Any) -> Path:
    """A plan that the stand-in opens, and its sidecar, in some ways another."""
    plan = folder / f"{onnx_file.stem}.plan"
    data = onnx_file.read_bytes()
    plan.write_bytes(data)
    sidecar = replace(
        GOOD,
        profile=None,
        size_mb=round(len(data) / 1e6, 3),
        bytes=len(data),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        log=[],
        properties={entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props},
    )
    sidecar_path(plan).write_text(replace(sidecar, **changes).to_json())
    return plan


def same(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(other) >= 20
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.labels, other.labels)
