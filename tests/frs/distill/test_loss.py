"""Both terms and their gradients against the paper's formulas, written out in numpy place by place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from frs.distill import Adapters, frs_loss

Array = npt.NDArray[np.float64]
SHAPES = [(2, 5, 3, 4), (2, 5, 2, 2)]  # (B, C, H, W) a level
CHANNELS = 6  # A * K


def levels(seed: int, channels: int | None = None, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(b, channels or c, h, w, generator=generator, dtype=torch.float64) * scale for b, c, h, w in SHAPES
    ]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def by_hand(
    ours: list[Array], theirs: list[Array], student: list[Array], teacher: list[Array]
) -> tuple[float, float, list[Array], list[Array]]:
    """L_feat, L_cls, dL_feat / d ours, dL_cls / d student."""
    features, classes = 0.0, 0.0
    feature_gradients, class_gradients = [], []
    for f, big, s, t in zip(ours, theirs, student, teacher, strict=True):
        feature_gradient, class_gradient = np.zeros_like(f), np.zeros_like(s)
        batch, _, height, width = f.shape
        places = [(b, y, x) for b in range(batch) for y in range(height) for x in range(width)]
        score = {(b, y, x): max(sigmoid(v) for v in t[b, :, y, x]) for b, y, x in places}
        mass = sum(score.values())
        for b, y, x in places:
            weight = score[b, y, x] / mass
            for c in range(f.shape[1]):
                gap = big[b, c, y, x] - f[b, c, y, x]
                features += weight * gap**2
                feature_gradient[b, c, y, x] = -2 * weight * gap
            for k in range(s.shape[1]):
                p, q = sigmoid(s[b, k, y, x]), sigmoid(t[b, k, y, x])
                classes += weight * -(q * np.log(p) + (1 - q) * np.log(1 - p))
                class_gradient[b, k, y, x] = weight * (p - q)
        feature_gradients.append(feature_gradient)
        class_gradients.append(class_gradient)
    return features, classes, feature_gradients, class_gradients


def test_both_terms_and_gradients_are_the_formulas() -> None:
    ours, theirs = levels(1), levels(2, scale=3.0)
    student, teacher = levels(3, CHANNELS), levels(4, CHANNELS, scale=2.0)
    for tensor in (*ours, *student, *theirs, *teacher):
        tensor.requires_grad_(True)
    loss = frs_loss(ours, theirs, student, teacher)
    features, classes, feature_gradients, class_gradients = by_hand(
        *([level.detach().numpy() for level in side] for side in (ours, theirs, student, teacher))
    )
    assert float(loss.features.detach()) == pytest.approx(features, rel=1e-5)
    assert float(loss.classes.detach()) == pytest.approx(classes, rel=1e-5)
    torch.autograd.backward(loss.features + loss.classes)
    for level in range(len(SHAPES)):
        np.testing.assert_allclose(_gradient(ours[level]), feature_gradients[level], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(_gradient(student[level]), class_gradients[level], rtol=1e-4, atol=1e-7)
        assert theirs[level].grad is None
        assert teacher[level].grad is None


def _gradient(tensor: torch.Tensor) -> Array:
    assert tensor.grad is not None
    return tensor.grad.numpy()


def test_two_numbers_by_hand() -> None:
    # One place in each of two images, one channel, one logit: S = 1/2 and 3/4, gaps 1 and 3.
    ours, theirs = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1)
    teacher = torch.tensor([0.0, np.log(3.0)]).float().reshape(2, 1, 1, 1)
    student = torch.zeros(2, 1, 1, 1)
    loss = frs_loss([ours], [theirs], [student], [teacher])
    assert float(loss.features) == pytest.approx((0.5 * 1 + 0.75 * 9) / 1.25)
    assert float(loss.classes) == pytest.approx(np.log(2.0))


def test_a_given_score_takes_the_teachers_place() -> None:
    ours, theirs = levels(1), levels(2)
    student, teacher = levels(3, CHANNELS), levels(4, CHANNELS)
    ones = [torch.ones(b, h, w) for b, _, h, w in SHAPES]
    loss = frs_loss(ours, theirs, student, teacher, richness=ones)
    expected = sum(float((t - o).square().sum(1).mean()) for o, t in zip(ours, theirs, strict=True))
    assert float(loss.features) == pytest.approx(expected, rel=1e-5)
    nowhere = frs_loss(ours, theirs, student, teacher, richness=[torch.zeros_like(one) for one in ones])
    assert float(nowhere.features) == 0.0


def test_extreme_logits_stay_finite() -> None:
    extreme = [torch.tensor([-120.0, 120.0]).reshape(1, 2, 1, 1)]
    loss = frs_loss(extreme, extreme, [-extreme[0]], extreme)
    assert float(loss.classes) == pytest.approx(240.0)


def test_it_computes_in_float32_whatever_is_around_it() -> None:
    ours, theirs = ([level.float() for level in levels(seed)] for seed in (1, 2))
    student, teacher = ([level.float() for level in levels(seed, CHANNELS)] for seed in (3, 4))
    plain = frs_loss(ours, theirs, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = frs_loss(ours, theirs, student, teacher)
    assert inside.features.dtype == inside.classes.dtype == torch.float32
    assert torch.equal(plain.features, inside.features)
    assert torch.equal(plain.classes, inside.classes)
    halves = [[level.bfloat16() for level in side] for side in (ours, theirs, student, teacher)]
    assert frs_loss(*halves).features.dtype == torch.float32


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        (0, r"level 1: student features \(2, 5, 2, 1\), teacher features \(2, 5, 2, 2\)"),
        (2, r"level 1: student class logits \(2, 6, 2, 1\), teacher class logits \(2, 6, 2, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(side: int, sentence: str) -> None:
    sides = [levels(1), levels(2), levels(3, CHANNELS), levels(4, CHANNELS)]
    sides[side][1] = sides[side][1][..., :1]
    with pytest.raises(ValueError, match=sentence):
        frs_loss(*sides)


def test_other_levels_are_named() -> None:
    with pytest.raises(ValueError, match="2 adapted and 1 teacher features"):
        frs_loss(levels(1), levels(2)[:1], levels(3, CHANNELS), levels(4, CHANNELS))


def test_one_adapter_a_level_to_the_teachers_channels() -> None:
    adapters = Adapters(5, 8, levels=2)
    adapted = adapters([level.float() for level in levels(1)])
    assert [tuple(level.shape) for level in adapted] == [(2, 8, 3, 4), (2, 8, 2, 2)]
    assert sum(p.numel() for p in adapters.parameters()) == 2 * (5 * 8 * 9 + 8)
    assert bool((adapted[0] < 0).any()), "no activation behind the convolution"
