"""A detector for another list of the classes that it knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from frs.detectors import Detector, FasterRCNN, build_detector, spec_of_family, with_classes
from frs.errors import WeightsError
from tests.frs.export.lab import SMALL, randomise

NAMES, IDS = ("cat", "dog", "bird", "N/A", "N/A"), (3, 17, 44, 60, 61)


def built(family: str) -> Detector:
    torch.manual_seed(0)
    detector = build_detector(spec_of_family(family)(**{**SMALL, "classes": NAMES, "category_ids": IDS})).eval()
    randomise(detector)
    return detector


def logits(detector: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(places, anchors, classes) of the first level, and all other answers."""
    torch.manual_seed(1)
    outputs = detector.head(detector.features(torch.randn(1, 3, 128, 128)))
    classes = outputs.class_logits[0][0].unflatten(0, (-1, len(detector.spec.classes))).permute(2, 3, 0, 1)
    return classes, outputs.box_regression[0]


@pytest.mark.parametrize("family", ["retinanet", "fcos", "gfl"])
@torch.no_grad()
def test_the_answers_of_a_dense_detector_are_chosen_and_ordered(family: str) -> None:
    detector = built(family)
    chosen = with_classes(detector, ["bird", "cat"], [7, 1])
    assert (chosen.spec.classes, chosen.spec.category_ids) == (("bird", "cat"), (7, 1))
    (before, boxes), (after, same_boxes) = logits(detector), logits(chosen)
    torch.testing.assert_close(after, before[..., [2, 0]])
    torch.testing.assert_close(same_boxes, boxes)


@torch.no_grad()
def test_the_second_stage_too() -> None:
    detector = built("faster_rcnn")
    chosen = with_classes(detector, ["bird", "cat"], [7, 1])
    assert isinstance(detector, FasterRCNN)
    assert isinstance(chosen, FasterRCNN)
    cells = torch.randn(5, 32, 7, 7)
    (scores, boxes), (after, chosen_boxes) = detector.roi_head(cells), chosen.roi_head(cells)
    torch.testing.assert_close(after, scores[:, [2, 0, 5]])  # the last is the background
    torch.testing.assert_close(chosen_boxes, boxes[:, [2, 0]])


@pytest.mark.parametrize("wanted", [["cat", "horse"], ["N/A"]])
def test_a_name_that_is_not_there_or_there_twice(wanted: list[str]) -> None:
    with pytest.raises(WeightsError) as caught:
        with_classes(built("retinanet"), wanted, range(len(wanted)))
    assert str(caught.value) == (
        f"the detector's classes are cat, dog, bird, N/A, N/A, the wanted ones {', '.join(wanted)}; {wanted[-1]} of these is "
        "not among those"
    )


def test_the_weights_are_its_own() -> None:
    detector = built("retinanet")
    chosen = with_classes(detector, NAMES[:2], IDS[:2])
    nn.init.zeros_(chosen.class_output.weight)  # type: ignore[union-attr, arg-type]
    assert float(detector.class_output.weight.detach().abs().max()) > 0  # type: ignore[union-attr, operator]
