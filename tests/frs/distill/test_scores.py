from __future__ import annotations

import numpy as np
import torch

from frs.detectors import Targets
from frs.distill.scores import everywhere, feature_richness, inside_boxes


def test_the_richness_is_the_greatest_probability_of_any_anchor_and_class() -> None:
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, :, 0, 0] = torch.tensor([-3.0, 2.0, -9.0, 0.5])
    logits[0, :, 0, 1] = torch.tensor([-1.0, -2.0, -9.0, -4.0])
    found = feature_richness(logits.requires_grad_(True))
    assert found.shape == (1, 1, 2)
    np.testing.assert_allclose(found.numpy(), [[[1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(1.0))]]], rtol=1e-6)
    assert not found.requires_grad


def test_whole_feature_imitation_weighs_every_place_alike() -> None:
    assert torch.equal(everywhere(torch.randn(2, 6, 3, 4, dtype=torch.bfloat16)), torch.ones(2, 3, 4))


def test_a_box_masks_the_places_whose_pixels_it_touches() -> None:
    boxes = torch.tensor([[[9.0, 0, 17, 8], [0, 0, 32, 32]], [[4.0, 20, 6, 22], [16, 16, 40, 30]]])
    labels = torch.zeros(2, 2, dtype=torch.int64)
    valid = torch.tensor([[True, False], [True, True]])  # of the first image the second is a crowd, or filling
    found = inside_boxes(torch.randn(2, 6, 4, 4), Targets(boxes, labels, valid, ~valid), 8)
    # x from 9 to 17 touches the columns 8 to 16 and 16 to 24; y from 0 to 8 ends where the second row begins.
    first = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # The small box lies in one place; the large one in columns 16 to 32 (the map ends there) and rows 16 to 32.
    second = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]]
    assert found.tolist() == [first, second]


def test_without_a_box_no_place_is_inside_one() -> None:
    none = torch.zeros(1, 0, 4)
    empty = torch.zeros(1, 0, dtype=torch.bool)
    found = inside_boxes(torch.randn(1, 6, 2, 3), Targets(none, torch.zeros(1, 0, dtype=torch.int64), empty, empty), 8)
    assert found.tolist() == [[[0.0] * 3] * 2]
