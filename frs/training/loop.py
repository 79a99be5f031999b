"""The training loop: resumable at any step, bit for bit on a CPU.

Nothing depends on what ran before: the data of a step follow from (seed, epoch, step), and torch's generator is
seeded anew at every step. A checkpoint is therefore weights, optimiser state and a step number.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from frs.data.loader import Batch, TrainingLoader, worker_error
from frs.distributed import average_gradients, averaged, copy_of_first, gathered, of_first, rank
from frs.errors import TrainingError
from frs.interrupts import signals_deferred
from frs.training import checkpoint as checkpoints
from frs.training.compiling import Compiled
from frs.training.device import Device
from frs.training.ema import RunningMean
from frs.training.freezing import freeze, wake
from frs.training.metrics import MetricsLog
from frs.training.objective import Objective, Terms, mean
from frs.training.optimiser import build_optimizer, learning_rate
from frs.training.recipe import Recipe

_SMALLEST_SCALE = 1.0
"""Of the loss; where nothing is scaled, it is this. A gradient that overflows even so is not float16's fault."""


@dataclass(frozen=True)
class Epoch:
    """What is kept of an epoch: mean of every term, the weights in force, seconds, AP where it was measured, and how many
    steps were skipped because their gradient overflowed (fp16)."""

    epoch: int
    terms: dict[str, float]
    lr: float
    seconds: float
    AP: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


_OF_RANK = 2_654_435_761
"""Between the seeds of two ranks; torch's generator takes 32 bits of a seed, of which steps and seeds fill the lower ones."""


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

    `scratch` holds the checkpoints of an interrupted attempt at the same training, if there was one; it goes on from
    there. `scratch/metrics.jsonl` is written as `frs.training.metrics` says. SIGINT and SIGTERM wait for the end of a step,
    and what was reached is saved. `evaluate` returns the detector's AP; it is called every `recipe.validate_every` epochs.
    Raises TrainingError when a term or the gradient is not finite (`scratch/not_finite.json` then names the images), and
    when a process that loads images dies.
    """
    training = _Training(objective, loader, recipe, device, scratch, watcher, evaluate)
    try:
        training.run()
    except RuntimeError as error:
        explained = worker_error(error)
        if explained is None:
            raise
        raise explained from None
    except BaseException as error:
        if not isinstance(error, Exception):  # an interruption, so between two steps: what is there is whole
            training.save()
        raise
    finally:
        loader.close()
        training.metrics.close()
    if training.ema is not None:
        training.ema.swap()
    objective.eval()
    return training.state.history


@dataclass
class _State:
    """Where a training is; `sums`, `figures` and `skipped` are of the epoch under way."""

    step: int = 0
    history: list[Epoch] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    skipped: int = 0

    def count(self, terms: Terms) -> None:
        self.step += 1
        self.figures = terms.figures
        for name, value in [("loss", terms.total), *terms.parts.items()]:
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def end_epoch(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        self.sums, self.skipped = {}, 0

    @property
    def shown(self) -> dict[str, float]:
        """For the progress: the AP that was measured last, and how many steps were skipped so far, if any."""
        measured = [epoch.AP for epoch in self.history if epoch.AP is not None]
        skipped = self.skipped + sum(epoch.skipped for epoch in self.history)
        return ({"AP": measured[-1]} if measured else {}) | ({"skipped": skipped} if skipped else {})


class _Training:
    """One call of `train`."""

    def __init__(
        self,
        objective: Objective,
        loader: TrainingLoader,
        recipe: Recipe,
        device: Device,
        scratch: Path,
        watcher: Watcher,
        evaluate: Callable[[], float | None] | None,
    ) -> None:
        device.place(objective)
        copy_of_first(objective)
        freeze(objective, recipe)
        wake(objective, recipe)
        self.objective, self.loader, self.recipe, self.device = objective, loader, recipe, device
        self.scratch, self.watcher, self.evaluate = scratch, watcher, evaluate
        self.optimizer = build_optimizer(objective, recipe)
        self.ema = RunningMean(objective.detector, recipe.ema) if recipe.ema is not None else None
        self.compiled = Compiled(objective.detector) if recipe.compile else None
        self.scaler = torch.amp.GradScaler(device.kind, enabled=recipe.precision == "fp16")
        self.state = self._resume()
        self.metrics = MetricsLog(
            scratch, step=self.state.step, epochs=len(self.state.history), tensorboard=recipe.tensorboard
        )
        self.saved_as = self._progress
        self.saved = self.epoch_started = time.monotonic()

    def run(self) -> None:
        recipe, state, per_epoch = self.recipe, self.state, self.loader.steps_per_epoch
        total = recipe.epochs * per_epoch
        if state.sums and state.step % per_epoch == 0:  # stopped behind the last step of an epoch, before its end
            self._end_epoch()
        for step, batch in self._batches():
            lr = learning_rate(recipe, step, per_epoch)
            with signals_deferred():
                terms, norm = self._step(step, batch, lr)
                state.count(terms)
                if state.step % recipe.log_every == 0:
                    losses = {name: float(value) for name, value in [("loss", terms.total), *terms.parts.items()]}
                    place = {"epoch": step // per_epoch, "lr": lr, "gradient_norm": float(norm)}
                    self.metrics.write("step", state.step, {**place, **losses, **terms.figures})
            in_epoch = step % per_epoch + 1
            shown = {"epoch": f"{step // per_epoch + 1}/{recipe.epochs}", "step": f"{state.step}/{total}"}
            self.watcher.update(state.step, total, **shown, loss=state.sums["loss"] / in_epoch, **state.shown)
            if in_epoch == per_epoch:
                self._end_epoch()
            elif time.monotonic() - self.saved > recipe.checkpoint_minutes * 60:
                self.save()

    def save(self) -> None:
        """Write a checkpoint, unless nothing was done since the last one. A signal waits: torch does not bear one there."""
        if self._progress == self.saved_as:
            return
        with signals_deferred():
            self.metrics.sync()
            if rank() == 0:  # all have the same
                checkpoints.save(self.scratch, self._checkpoint())
            self.saved, self.saved_as = time.monotonic(), self._progress

    def _checkpoint(self) -> checkpoints.Checkpoint:
        state = self.state
        return checkpoints.Checkpoint(
            step=state.step,
            objective=self.objective.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=[asdict(epoch) for epoch in state.history],
            sums=state.sums,
            figures=state.figures,
            skipped=state.skipped,
            scaler=self.scaler.state_dict(),
            ema=self.ema.mean if self.ema is not None else None,
        )

    @property
    def _progress(self) -> tuple[int, int]:
        return self.state.step, len(self.state.history)

    def _resume(self) -> _State:
        found = of_first(lambda: checkpoints.load(self.scratch, self.watcher.log))
        if found is None:
            return _State()
        self.objective.load_state_dict(found.objective)
        self.optimizer.load_state_dict(found.optimizer)
        self.scaler.load_state_dict(found.scaler)
        if self.ema is not None and found.ema is not None:
            self.ema.load(found.ema)
        epoch = found.step // self.loader.steps_per_epoch + 1
        self.watcher.log(f"continuing at step {found.step} (epoch {epoch})")
        history = [Epoch(**each) for each in found.history]
        return _State(found.step, history, found.sums, found.figures, found.skipped)

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        per_epoch, start = self.loader.steps_per_epoch, self.state.step
        for epoch in range(start // per_epoch, self.recipe.epochs):
            first = max(start - epoch * per_epoch, 0)
            for offset, batch in enumerate(self.loader.epoch(epoch, first)):
                yield epoch * per_epoch + first + offset, batch

    def _step(self, step: int, batch: Batch, lr: float) -> tuple[Terms, Tensor]:
        """The terms of all ranks, and the norm of the gradient before it was clipped."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + step + rank() * _OF_RANK)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        terms = mean([self._differentiate(step, part) for part in batch.split(self.recipe.accumulate)])
        average_gradients(self.objective)
        self.scaler.unscale_(self.optimizer)
        clip = self.recipe.clip if self.recipe.clip is not None else math.inf
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), clip)
        if self.scaler.get_scale() > _SMALLEST_SCALE:
            self.state.skipped += int(not torch.isfinite(norm))  # the scaler leaves this step out, and halves the scale
        else:
            # Before it reaches the weights, and with them every later checkpoint.
            self._check_finite(step, batch, {**terms.parts, "total": terms.total, "gradient": norm})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(step + 1)
        return terms, norm

    def _differentiate(self, step: int, batch: Batch) -> Terms:
        """Add a micro-batch's part of the gradient; its terms are those of all ranks."""
        with self.compiled.in_force() if self.compiled is not None else nullcontext():
            terms = forward(self.objective, batch, step, self.device, self.recipe.precision)
            means = averaged(torch.stack([*terms.parts.values(), terms.total]).double())
            values = dict(zip([*terms.parts, "total"], means.unbind(), strict=True))
            self._check_finite(step, batch, values)
            torch.autograd.backward(self.scaler.scale(terms.total / self.recipe.accumulate))
        return replace(terms, total=values.pop("total"), parts=values)

    def _check_finite(self, step: int, batch: Batch, values: dict[str, Tensor]) -> None:
        bad = [name for name, value in values.items() if not bool(torch.isfinite(value))]
        if not bad:
            return
        path = self.scratch / "not_finite.json"
        figures = {name: str(float(value.detach())) for name, value in values.items()}
        image_ids = [image_id for ids in zip(*gathered(batch.image_ids), strict=True) for image_id in ids]
        if rank() == 0:
            self.scratch.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"step": step, "figures": figures, "image_ids": image_ids}, indent=1) + "\n")
        wider = "set train.precision to bf16 or fp32, " if self.recipe.precision == "fp16" else ""
        raise TrainingError(
            f"step {step}: not finite: {', '.join(bad)}; {wider}lower train.lr, or look at the boxes of the batch's images, "
            f"whose ids are in {path}. The training is saved up to step {of_first(lambda: self.saved_as[0])}"
        )

    def _end_epoch(self) -> None:
        per_epoch = self.loader.steps_per_epoch
        epoch, last = self.state.step // per_epoch - 1, self.state.step - 1
        ap = None
        if self.evaluate is not None and self.recipe.validate_every and (epoch + 1) % self.recipe.validate_every == 0:
            self.save()  # an interruption of the measurement does not cost the epoch
            self.objective.eval()
            with self.ema.in_force() if self.ema is not None else nullcontext():
                ap = self.evaluate()
            wake(self.objective, self.recipe)
        means = {name: value / per_epoch for name, value in self.state.sums.items()}
        lr = learning_rate(self.recipe, last, per_epoch)
        seconds = time.monotonic() - self.epoch_started
        ended = Epoch(epoch, means, lr, seconds, ap, self.state.figures, self.state.skipped)
        with signals_deferred():
            self.state.end_epoch(ended)
            line = asdict(ended)
            self.metrics.write("epoch", last + 1, {**line.pop("terms"), **line.pop("figures"), **line})
        self.epoch_started = time.monotonic()
        self.save()


def forward(objective: Objective, batch: Batch, step: int, device: Device, precision: str) -> Terms:
    """The terms of a batch, which is brought to the device; precision: as `Recipe.precision`."""
    # Not waited for where the batch is pinned: what computes with them does.
    images = batch.images.to(device.torch_device, non_blocking=True, memory_format=torch.channels_last)
    targets = batch.targets.map(lambda tensor: tensor.to(device.torch_device, non_blocking=True))
    autocast = device.dtype(precision)
    with torch.autocast(device.kind, dtype=autocast, enabled=autocast is not None):
        terms: Terms = objective(images, targets, step)
    return terms
