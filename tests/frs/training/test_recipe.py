"""Optimisers, schedules and frozen parts, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec
from frs.errors import TrainingError
from frs.training import Recipe
from frs.training.optimiser import build_optimizer, learning_rate
from tests.frs.training.test_loop import Cut, Dead, objective, weights_after

MMDETECTION = Recipe(
    epochs=12, lr=0.01, optimizer="sgd", weight_decay=1e-4, schedule="step", milestones=(8, 11), frozen_stages=1
)
"""mmdetection's 1x schedule; of its FCOS in caffe style, the rest."""
CAFFE = replace(
    MMDETECTION, warmup_ratio=1 / 3, warmup_shape="constant", bias_lr=2.0, bias_decay=False, frozen_norm="all"
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-5),
        (250, 0.005005),
        (499, 0.00998002),
        (500, 0.01),
        (7999, 0.01),
        (8000, 1e-3),
        (10999, 1e-3),
        (11000, 1e-4),
    ],
)
def test_mmdetections_rate_rises_by_steps_and_falls_by_epochs(step: int, rate: float) -> None:
    assert learning_rate(MMDETECTION, step, 1000) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01 / 3), (499, 0.01 / 3), (500, 0.01)])
def test_a_constant_warm_up(step: int, rate: float) -> None:
    assert learning_rate(CAFFE, step, 1000) == pytest.approx(rate, rel=1e-9)


def test_without_warm_up_the_rate_is_whole_at_once() -> None:
    assert learning_rate(replace(MMDETECTION, warmup_steps=0), 0, 10) == 0.01


def after_two_steps(small: RetinaNetSpec, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The first number of each parameter, before and after two steps with the gradient 1, all groups at their factor."""
    made = objective(small)
    optimizer = build_optimizer(made, recipe)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * group["factor"]
    before = {name: float(p.detach().flatten()[0]) for name, p in made.named_parameters()}
    for _ in range(2):
        for parameter in made.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return {name: (before[name], float(p.detach().flatten()[0])) for name, p in made.named_parameters()}


def sgd(w: float, lr: float, decay: float) -> float:
    """Two steps with the gradient 1 and the momentum 0.9."""
    velocity = 0.0
    for _ in range(2):
        velocity = 0.9 * velocity + 1 + decay * w
        w -= lr * velocity
    return w


def adamw(w: float, lr: float, decay: float) -> float:
    """Two steps with the gradient 1: both moments stand at 1 once their bias is taken out."""
    for _ in range(2):
        w = w * (1 - lr * decay) - lr / (1 + 1e-8)
    return w


def test_sgd_decays_every_parameter(small: RetinaNetSpec) -> None:
    recipe = Recipe(epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.5, backbone_lr=0.1)
    found = after_two_steps(small, recipe)
    assert {"detector.backbone.body.bn1.bias", "detector.class_output.bias"} <= found.keys()
    for name, (before, after) in found.items():
        lr = 0.01 if ".backbone." in name else 0.1
        assert after == pytest.approx(sgd(before, lr, 0.5), rel=1e-5, abs=1e-6), name


def test_biases_outside_of_norms_have_a_rate_of_their_own_and_no_decay(small: RetinaNetSpec) -> None:
    recipe = Recipe(epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.5, bias_lr=2.0, bias_decay=False)
    for name, (before, after) in after_two_steps(small, recipe).items():
        bias = name.endswith("bias") and ".bn" not in name and "downsample.1" not in name and "tower.1" not in name
        expected = sgd(before, 0.2, 0.0) if bias else sgd(before, 0.1, 0.5)
        assert after == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_adamw_decays_weights_alone(small: RetinaNetSpec) -> None:
    made = dict(objective(small).named_parameters())
    for name, (before, after) in after_two_steps(small, Recipe(epochs=1, lr=0.1, weight_decay=0.5)).items():
        decay = 0.5 if made[name].ndim == 4 else 0.0
        assert after == pytest.approx(adamw(before, 0.1, decay), rel=1e-5, abs=1e-6), name


def changed(data: CocoDataset, spec: RetinaNetSpec, recipe: Recipe, scratch: Path) -> tuple[set[str], set[str]]:
    """Names of the backbone's tensors that a training changed, and that it left."""
    made = objective(spec)
    before = {name: tensor.clone() for name, tensor in made.detector.state_dict().items()}
    after, _ = weights_after(made, data, recipe, scratch)
    names = {name for name in before if name.startswith("backbone.body.")}
    moved = {name for name in names if not torch.equal(before[name], after[name])}
    return {n.removeprefix("backbone.body.") for n in moved}, {n.removeprefix("backbone.body.") for n in names - moved}


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [(1, ("conv1.", "bn1.", "layer1.")), (3, ("conv1.", "bn1.", "layer1.", "layer2.", "layer3."))],
)
def test_frozen_stages_keep_weights_and_statistics(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, stages: int, frozen: tuple[str, ...]
) -> None:
    moved, left = changed(rectangles, small, Recipe(epochs=1, lr=1e-2, frozen_stages=stages), tmp_path)
    assert left
    assert all(name.startswith(frozen) for name in left)
    assert not any(name.startswith(frozen) for name in moved)


@pytest.mark.parametrize("how", ["statistics", "all"])
def test_frozen_norm_keeps_the_statistics_and_where_it_says_so_the_rest(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path, how: str
) -> None:
    moved, left = changed(rectangles, small, Recipe(epochs=1, lr=1e-2, frozen_norm=how), tmp_path)
    norms = {name.rpartition(".")[0] for name in moved | left if name.endswith("running_mean")}
    statistics = {f"{norm}.{each}" for norm in norms for each in ("running_mean", "running_var", "num_batches_tracked")}
    affine = {f"{norm}.{each}" for norm in norms for each in ("weight", "bias")}
    assert left == (statistics | affine if how == "all" else statistics)


def test_a_backbone_without_such_stages_is_named(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path) -> None:
    lite = replace(small, backbone="tf_efficientnet_lite0", backbone_options={})
    with pytest.raises(TrainingError) as error:
        weights_after(objective(lite), rectangles, Recipe(epochs=1, lr=1e-3, frozen_stages=1), tmp_path)
    assert str(error.value) == (
        "train.frozen_stages is 1, but the backbone tf_efficientnet_lite0 has no stages layer1 .. layer4, as ResNet, ResNeXt "
        "and SE-ResNet have; set it to 0, or backbone_lr to 0 to freeze all of the backbone"
    )


@pytest.mark.parametrize("name", ["resnet50d", "resnext50_32x4d", "seresnet18"])
def test_the_stem_of_a_resnet_is_all_before_its_first_stage(name: str) -> None:
    from frs.detectors.backbones import Backbone
    from frs.training.freezing import first_stages

    body = Backbone(name, {}).body
    assert isinstance(body, nn.Module)
    parts = dict(body.named_children())
    assert first_stages(body, 2) == [parts[n] for n in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2")]


def test_mmdetections_recipe_goes_on_with_the_same_bits(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    recipe = replace(CAFFE, epochs=3, milestones=(1, 2), warmup_steps=4, checkpoint_minutes=1e-9)
    whole, history = weights_after(objective(small), rectangles, recipe, tmp_path / "whole")
    assert [epoch.lr for epoch in history] == pytest.approx([0.01 / 3, 1e-3, 1e-4])
    with pytest.raises(Dead):
        weights_after(objective(small), rectangles, recipe, tmp_path / "cut", Cut(5))
    resumed, _ = weights_after(objective(small), rectangles, recipe, tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
