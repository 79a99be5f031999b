"""From a spec to a detector; the one place that knows all families."""

from __future__ import annotations

import json

from frs.detectors.base import Detector
from frs.detectors.retinanet import RetinaNet, RetinaNetSpec


def build_detector(spec: RetinaNetSpec) -> Detector:
    """A detector with random weights, in training mode."""
    return RetinaNet(spec)


def parse_spec(text: str) -> RetinaNetSpec:
    """The spec that `spec.to_json()` wrote. Raises ValueError for anything else."""
    try:
        family = json.loads(text)["family"]
        if family == RetinaNetSpec.family:
            return RetinaNetSpec.from_json(text)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no detector's description: {error}") from None
    raise ValueError(f"unknown detector family {family!r}")
