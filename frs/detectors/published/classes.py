"""The same detector for another list of classes that it knows: outputs are chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from frs.detectors.base import Detector
from frs.detectors.build import build_detector
from frs.errors import WeightsError

_SHOWN = 8


def with_classes(detector: Detector, names: Sequence[str], category_ids: Sequence[int]) -> Detector:
    """A detector of these classes, in this order, with the outputs that the given one has for them; evaluation mode.

    Raises WeightsError where one of the names is not among the detector's classes, or is there twice.
    """
    known = detector.spec.classes
    unknown = [name for name in names if known.count(name) != 1]
    if unknown:
        raise WeightsError(
            f"the detector's classes are {_some(known)}, the wanted ones {_some(names)}; {_some(unknown)} of these "
            f"{'are' if len(unknown) > 1 else 'is'} not among those"
        )
    spec = replace(detector.spec, classes=tuple(names), category_ids=tuple(category_ids))
    chosen = build_detector(spec)
    columns = torch.tensor([known.index(name) for name in names])
    state = detector.state_dict()
    for name, tensor in chosen.state_dict().items():
        source = state[name]
        if name.startswith("class_output."):  # channel = anchor * K + class
            source = source.unflatten(0, (-1, len(known)))[:, columns.to(source.device)].flatten(0, 1)
        tensor.copy_(source)
    return chosen.eval()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
