"""From a spec to a detector; the one place that knows all families."""

from __future__ import annotations

import json

from frs.detectors.base import Detector
from frs.detectors.faster_rcnn import FasterRCNN, FasterRCNNSpec
from frs.detectors.fcos import FCOS, FCOSSpec
from frs.detectors.gfl import GFL, GFLSpec
from frs.detectors.retinanet import RetinaNet, RetinaNetSpec
from frs.detectors.spec import DetectorSpec

_DETECTORS: dict[type[DetectorSpec], type[Detector]] = {
    RetinaNetSpec: RetinaNet,
    FCOSSpec: FCOS,
    GFLSpec: GFL,
    FasterRCNNSpec: FasterRCNN,
}


def spec_of_family(family: str) -> type[DetectorSpec]:
    """The spec's class. Raises ValueError for a family that is not known."""
    for kind in _DETECTORS:
        if kind.family == family:
            return kind
    raise ValueError(f"unknown detector family {family!r}")


def build_detector(spec: DetectorSpec) -> Detector:
    """A detector with random weights, in training mode."""
    return _DETECTORS[type(spec)](spec)


def parse_spec(text: str) -> DetectorSpec:
    """The spec that `spec.to_json()` wrote. Raises ValueError for anything else."""
    try:
        return spec_of_family(json.loads(text)["family"]).from_json(text)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no detector's description: {error}") from None
