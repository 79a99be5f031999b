from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec
from frs.training import Recipe
from tests.frs.training.test_loop import Cut, Dead, loader, objective, weights_after

ONE_STEP = Recipe(
    epochs=1, lr=0.5, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip=None, precision="fp32",
    schedule="step", warmup_steps=0, accumulate=2,
)  # fmt: skip


def test_the_gradient_is_the_mean_of_the_parts(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    """One step of plain SGD, against autograd on each half of the batch by itself."""
    made = objective(small)
    with pytest.raises(Dead):
        weights_after(made, rectangles, ONE_STEP, tmp_path, Cut(1))
    byhand = objective(small).train()
    batch = next(iter(loader(rectangles).epoch(0)))
    first, second = batch.split(2)
    assert first.image_ids + second.image_ids == batch.image_ids
    assert torch.equal(torch.cat([first.targets.boxes, second.targets.boxes]), batch.targets.boxes)
    parameters = list(byhand.detector.parameters())
    gradients = [torch.autograd.grad(byhand(p.images, p.targets, 0).total, parameters) for p in (first, second)]
    for parameter, reached, a, b in zip(parameters, made.detector.parameters(), *gradients, strict=True):
        torch.testing.assert_close(reached.detach(), (parameter - 0.5 * (a + b) / 2).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_goes_on_with_the_same_bits(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, precision: str
) -> None:
    recipe = Recipe(epochs=2, lr=2e-3, seed=5, accumulate=4, precision=precision, checkpoint_minutes=1e-9)
    whole, history = weights_after(objective(small), rectangles, recipe, tmp_path / "whole")
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, recipe, tmp_path / "cut", Cut(4))
    resumed, resumed_history = weights_after(objective(small), rectangles, recipe, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [epoch.terms for epoch in resumed_history] == [epoch.terms for epoch in history]
    undivided, _ = weights_after(objective(small), rectangles, replace(recipe, accumulate=1), tmp_path / "undivided")
    assert not all(torch.equal(whole[name], undivided[name]) for name in whole)
