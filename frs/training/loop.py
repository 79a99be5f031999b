"""The training loop: resumable at any step, bit for bit on a CPU.

Nothing depends on what ran before: the data of a step follow from (seed, epoch, step), and torch's generator is
seeded anew at every step. A checkpoint is therefore weights, optimiser state and a step number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from frs.data.loader import Batch, TrainingLoader
from frs.detectors import Targets
from frs.errors import TrainingError
from frs.training import checkpoint as checkpoints
from frs.training.device import Device
from frs.training.objective import Objective, Terms


@dataclass(frozen=True)
class Recipe:
    """How to train.

    lr: the peak of a one-cycle schedule (linear rise over `warmup`, a part of all steps, then a cosine to zero);
    backbone_lr: factor on it for the backbone, 0 freezes it; clip: largest L2 norm of the gradient, or None;
    precision: "auto", "fp32" or "bf16".
    """

    epochs: int
    lr: float
    seed: int = 0
    backbone_lr: float = 1.0
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip: float | None = 10.0
    precision: str = "auto"
    validate_every: int = 0
    checkpoint_minutes: float = 10.0


@dataclass(frozen=True)
class Epoch:
    """What is kept of an epoch: mean of every term, the weights in force, seconds, AP where it was measured."""

    epoch: int
    terms: dict[str, float]
    lr: float
    seconds: float
    AP: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


class Watcher(Protocol):
    """Is told how far the training is."""

    def update(self, done: float, total: float, **figures: float | str) -> None: ...

    def log(self, message: str) -> None: ...


def train(
    objective: Objective,
    loader: TrainingLoader,
    recipe: Recipe,
    device: Device,
    *,
    scratch: Path,
    watcher: Watcher,
    evaluate: Callable[[], float | None] | None = None,
) -> list[Epoch]:
    """Train `objective.detector` in place and return the epochs' history.

    `scratch` holds the checkpoint of an interrupted attempt at the same training, if there was one; it goes on from
    there. `evaluate` returns the detector's AP; it is called every `recipe.validate_every` epochs. Raises TrainingError
    when a term is not finite.
    """
    device.place(objective)
    _wake(objective, recipe)
    optimizer = _optimizer(objective, recipe)
    per_epoch = loader.steps_per_epoch
    total = recipe.epochs * per_epoch
    state = _resume(scratch, objective, optimizer, watcher, per_epoch)
    saved = epoch_started = time.monotonic()
    for step, batch in _batches(loader, recipe.epochs, state.step):
        epoch = step // per_epoch
        lr = recipe.lr * one_cycle(step, total, recipe.warmup)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        terms = _forward(objective, batch, step, device, recipe.precision)
        _check_finite(terms, step, batch)
        _step(objective, optimizer, terms.total, lr, recipe.clip)
        state.count(terms)
        in_epoch = state.step - epoch * per_epoch
        place = {"epoch": f"{epoch + 1}/{recipe.epochs}", "step": f"{state.step}/{total}"}
        watcher.update(state.step, total, **place, loss=state.sums["loss"] / in_epoch, **state.shown)
        if in_epoch == per_epoch:
            due = recipe.validate_every and (epoch + 1) % recipe.validate_every == 0
            ap = _measure(objective, recipe, evaluate) if evaluate and due else None
            means = {name: value / per_epoch for name, value in state.sums.items()}
            state.end_epoch(Epoch(epoch, means, lr, time.monotonic() - epoch_started, ap, terms.figures))
            epoch_started = time.monotonic()
        if in_epoch == per_epoch or time.monotonic() - saved > recipe.checkpoint_minutes * 60:
            state.save(scratch, objective, optimizer)
            saved = time.monotonic()
    objective.eval()
    return state.history


def one_cycle(step: int, total: int, warmup: float) -> float:
    """The learning rate at `step` of `total`, as a part of its peak: linear from 1/25, then a cosine to 0."""
    rising = max(1, round(total * warmup))
    if step < rising:
        return 0.04 + 0.96 * step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


@dataclass
class _State:
    step: int = 0
    history: list[Epoch] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    shown: dict[str, float] = field(default_factory=dict)

    def count(self, terms: Terms) -> None:
        self.step += 1
        for name, value in [("loss", terms.total), *terms.parts.items()]:
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def end_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.sums = {}
        if epoch.AP is not None:
            self.shown = {"AP": epoch.AP}

    def save(self, scratch: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        history = [asdict(epoch) for epoch in self.history]
        checkpoints.save(
            scratch,
            checkpoints.Checkpoint(self.step, objective.state_dict(), optimizer.state_dict(), history, self.sums),
        )


def _resume(
    scratch: Path, objective: Objective, optimizer: torch.optim.Optimizer, watcher: Watcher, per_epoch: int
) -> _State:
    found = checkpoints.load(scratch)
    if found is None:
        return _State()
    objective.load_state_dict(found.objective)
    optimizer.load_state_dict(found.optimizer)
    watcher.log(f"continuing at step {found.step} (epoch {found.step // per_epoch + 1})")
    state = _State(found.step, [Epoch(**epoch) for epoch in found.history], found.sums)
    measured = [epoch.AP for epoch in state.history if epoch.AP is not None]
    state.shown = {"AP": measured[-1]} if measured else {}
    return state


def _batches(loader: TrainingLoader, epochs: int, start: int) -> Iterator[tuple[int, Batch]]:
    per_epoch = loader.steps_per_epoch
    for epoch in range(start // per_epoch, epochs):
        first = max(start - epoch * per_epoch, 0)
        for offset, batch in enumerate(loader.epoch(epoch, first)):
            yield epoch * per_epoch + first + offset, batch


def _optimizer(objective: Objective, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases and normalisation parameters are not decayed, the backbone has its own learning rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    backbone = {id(p) for p in objective.detector.backbone.parameters()}
    for parameter in objective.parameters():
        factor = recipe.backbone_lr if id(parameter) in backbone else 1.0
        if factor == 0.0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "factor": factor, "weight_decay": recipe.weight_decay if decayed else 0.0}
            for (factor, decayed), parameters in groups.items()
        ],
        lr=recipe.lr,
    )


def _forward(objective: Objective, batch: Batch, step: int, device: Device, precision: str) -> Terms:
    images = batch.images.to(device.torch_device, memory_format=torch.channels_last)
    targets = Targets(**{name: tensor.to(device.torch_device) for name, tensor in vars(batch.targets).items()})
    autocast = device.dtype(precision)
    with torch.autocast(device.kind, dtype=autocast, enabled=autocast is not None):
        terms: Terms = objective(images, targets, step)
    return terms


def _step(objective: Objective, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, clip: float | None) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if clip is not None:
        nn.utils.clip_grad_norm_(objective.parameters(), clip)
    optimizer.step()


def _check_finite(terms: Terms, step: int, batch: Batch) -> None:
    bad = [name for name, value in terms.parts.items() if not bool(torch.isfinite(value))]
    if bad or not bool(torch.isfinite(terms.total)):
        raise TrainingError(
            f"step {step}: the loss is not finite (term {', '.join(bad) or 'total'}; images "
            f"{', '.join(map(str, batch.image_ids))}); lower train.lr, or look at these images' boxes. The last "
            "checkpoint is kept"
        )


def _measure(objective: Objective, recipe: Recipe, evaluate: Callable[[], float | None]) -> float | None:
    objective.eval()
    ap = evaluate()
    _wake(objective, recipe)
    return ap


def _wake(objective: Objective, recipe: Recipe) -> None:
    """Training mode; a frozen backbone keeps its batch statistics too."""
    objective.train()
    if recipe.backbone_lr == 0.0:
        objective.detector.backbone.eval()
