"""float16: the loss's scale, steps that are left out, and losses that are float32 whatever the precision around them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec, Targets, build_detector
from frs.distill.loss import frs_loss
from frs.errors import TrainingError
from frs.training import DetectionObjective, Recipe, Terms, checkpoint
from tests.frs.training.test_loop import Cut, Dead, Silent, loader, objective, weights_after

FP16 = Recipe(epochs=3, lr=2e-3, seed=5, precision="fp16", checkpoint_minutes=1e-9)
FIRST_SCALE = 65536.0  # torch.amp.GradScaler's own


class Steep(DetectionObjective):
    """At its fifth step the loss is finite, and too steep for float16."""

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        terms: Terms = super().forward(images, targets, step)
        return replace(terms, total=terms.total * 1e9) if step == 4 else terms


class Watching(Silent):
    """Keeps the parameters and what was shown after each step; stops after one, if asked."""

    def __init__(self, made: DetectionObjective, stop: int | None = None) -> None:
        self.made, self.stop = made, stop
        self.parameters: list[list[Tensor]] = []
        self.shown: list[dict[str, float | str]] = []

    def update(self, done: float, total: float, **figures: float | str) -> None:
        self.parameters.append([p.detach().clone() for p in self.made.detector.parameters()])
        self.shown.append(figures)
        if done == self.stop:
            raise Dead


def test_a_step_that_overflows_is_left_out_and_counted(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    made = Steep(objective(small).detector)
    watching = Watching(made, stop=7)
    with pytest.raises(Dead):
        weights_after(made, rectangles, FP16, tmp_path, watching)
    same = [
        all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in zip(watching.parameters, watching.parameters[1:], strict=False)
    ]
    assert same == [False, False, False, True, False, False]
    assert [shown.get("skipped") for shown in watching.shown] == [None] * 4 + [1, 1, 1]
    saved = checkpoint.load(tmp_path, pytest.fail)
    assert saved is not None
    assert saved.scaler["scale"] == FIRST_SCALE / 2
    resumed, history = weights_after(Steep(objective(small).detector), rectangles, FP16, tmp_path)
    whole, _ = weights_after(Steep(objective(small).detector), rectangles, FP16, tmp_path / "whole")
    assert [epoch.skipped for epoch in history] == [0, 1, 0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {tensor.dtype for name, tensor in whole.items() if "num_batches" not in name} == {torch.float32}


@pytest.mark.parametrize("cut", [2, 5])
def test_half_precision_goes_on_with_the_same_bits_and_with_its_scale(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, cut: int
) -> None:
    def steep() -> Steep:
        return Steep(objective(small).detector)

    whole, _ = weights_after(steep(), rectangles, FP16, tmp_path / "whole")
    with pytest.raises(Dead):
        weights_after(steep(), rectangles, FP16, tmp_path / "cut", Cut(cut + 1))
    resumed, history = weights_after(steep(), rectangles, FP16, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sum(epoch.skipped for epoch in history) == 1


class Broken(DetectionObjective):
    """Its loss, or only its gradient, is no number."""

    how = "loss"

    def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
        terms: Terms = super().forward(images, targets, step)
        if self.how == "loss":
            return replace(terms, total=terms.total + math.nan)
        nothing = (next(self.detector.parameters()).flatten()[0] * 0.0).abs().sqrt()  # 0, and 0/0 is its gradient
        return replace(terms, total=terms.total + nothing)


def test_a_loss_that_is_not_finite_stops_half_precision_too(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="step 0: not finite: total"):
        weights_after(Broken(objective(small).detector), rectangles, FP16, tmp_path)


def test_a_gradient_that_no_scale_mends_stops_half_precision(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    """65536 is 2^16: after 16 steps the scale is 1."""
    broken = Broken(objective(small).detector)
    broken.how = "gradient"
    with pytest.raises(TrainingError, match=r"step 16: not finite: gradient; set train\.precision to bf16"):
        weights_after(broken, rectangles, replace(FP16, epochs=10), tmp_path)


def test_losses_of_float16_outputs_are_those_of_float32(rectangles: CocoDataset, small: RetinaNetSpec) -> None:
    torch.manual_seed(1)
    detector = build_detector(small)
    batch = next(iter(loader(rectangles).epoch(0)))
    with torch.autocast("cpu", dtype=torch.float16):
        features = detector.features(detector.normalize(batch.images))
        outputs = detector.head(features)
        losses = detector.loss(features, outputs, batch.targets)
        distilled = frs_loss(features, [level + 1 for level in features], outputs.class_logits, outputs.class_logits)
    assert outputs.class_logits[0].dtype == torch.float16
    plain = detector.loss(features, outputs.float(), batch.targets)
    wide = [level.float() for level in features]
    expected = frs_loss(wide, [level + 1 for level in features], *[outputs.float().class_logits] * 2)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, plain[name])
    assert distilled.features.dtype == distilled.classes.dtype == torch.float32
    assert torch.equal(distilled.features, expected.features)
    assert torch.equal(distilled.classes, expected.classes)
