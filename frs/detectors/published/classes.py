"""The same detector for another list of classes that it knows: outputs are chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from frs.detectors.base import Detector
from frs.detectors.build import build_detector
from frs.errors import WeightsError

_SHOWN = 8


def with_classes(detector: Detector, names: Sequence[str], category_ids: Sequence[int]) -> Detector:
    """A detector of these classes, in this order, with the outputs that the given one has for them; evaluation mode.

    A softmax over fewer classes (Faster R-CNN's second stage) gives each a higher score than before.

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
    state = {name: tensor.cpu() for name, tensor in detector.state_dict().items()}
    for name, tensor in chosen.state_dict().items():
        tensor.copy_(_rows(name, state[name], columns, len(known)))
    return chosen.eval()


def _rows(name: str, tensor: Tensor, columns: Tensor, known: int) -> Tensor:
    """Those of the classes, where the first dimension of the tensor has to do with classes."""
    if name.startswith("class_output."):  # a dense head: anchor * K + class
        return tensor.reshape(-1, known, *tensor.shape[1:])[:, columns].flatten(0, 1)
    if name.startswith("roi_head.class_output."):  # class, the last is the background
        return tensor[torch.cat([columns, torch.tensor([known])])]
    if name.startswith("roi_head.box_output."):  # class * 4 + coordinate
        return tensor.reshape(known, 4, *tensor.shape[1:])[columns].flatten(0, 1)
    return tensor


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
