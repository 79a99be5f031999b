"""Before a training that takes days: a few of its real steps, looked at closely."""

from __future__ import annotations

import gc
import itertools
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frs.data.loader import Batch, TrainingLoader, worker_error
from frs.training.device import Device
from frs.training.freezing import freeze, wake
from frs.training.loop import forward
from frs.training.objective import Objective, Terms
from frs.training.recipe import Recipe

STEPS = 3
"""The first warms up, and the others are timed."""


@dataclass(frozen=True)
class Probe:
    """What a few steps showed.

    terms: the loss terms of the first step; reach: term -> part of the objective ("detector", "adapters", ...) -> L2 norm
    of the term's gradient there, 0 where it does not come; seconds: of a step, its images' loading included; memory: bytes
    in use at most, of the GPU, or of this process where there is none; steps: of an epoch.
    """

    terms: dict[str, float]
    reach: dict[str, dict[str, float]]
    seconds: float
    memory: int
    steps: int

    def faults(self, needed: Mapping[str, Iterable[str]]) -> list[str]:
        """What is wrong, in words. needed: the terms that must not be 0, and the parts that each must reach."""
        found = [
            f"the term {name} is {value}: look at the teacher's weights and the inputs' normalisation"
            for name, value in self.terms.items()
            if not math.isfinite(value)
        ]
        for term, parts in needed.items():
            if self.terms[term] == 0.0:
                found.append(f"the term {term} is 0: nothing would be learnt from it")
            for part in parts:
                norm = self.reach[term].get(part, 0.0)
                if not math.isfinite(norm) or norm == 0.0:
                    found.append(f"the gradient of {term} at the {part} is {norm}: it would teach it nothing")
        return found


def probe(objective: Objective, loader: TrainingLoader, device: Device, recipe: Recipe) -> Probe:
    """Take the training's first steps, in its parts and precision, with AdamW, which needs most.

    The objective is changed, and of no further use. Raises TrainingError for what the recipe cannot freeze.
    """
    device.place(objective)
    freeze(objective, recipe)
    wake(objective, recipe)
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW((p for p in objective.parameters() if p.requires_grad), lr=1e-6)
    terms: dict[str, float] = {}
    reach: dict[str, dict[str, float]] = {}
    ended = []
    for step, batch in enumerate(_first(loader)):
        torch.manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        for part in batch.split(recipe.accumulate):
            answer = forward(objective, part, step, device, recipe.precision)
            if not terms:
                terms = {name: float(value.detach()) for name, value in answer.parts.items()}
                reach = _reach(objective, answer)
            torch.autograd.backward(answer.total / recipe.accumulate)
        optimizer.step()
        if device.kind == "cuda":
            torch.cuda.synchronize()
        ended.append(time.monotonic())
    seconds = min(b - a for a, b in itertools.pairwise(ended))
    memory = _peak_memory(device)
    release(objective)
    return Probe(terms, reach, seconds, memory, loader.steps_per_epoch)


def release(module: nn.Module) -> None:
    """Give back the GPU's memory: the trainings that come are other processes, where there are several."""
    module.zero_grad(set_to_none=True)
    module.cpu()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _first(loader: TrainingLoader) -> Iterator[Batch]:
    """The training's first batches, over and over where it has fewer. Raises TrainingError when a process that loads images
    dies or starves."""
    epochs = (loader.epoch(epoch) for epoch in itertools.count())
    try:
        yield from itertools.islice(itertools.chain.from_iterable(epochs), STEPS)
    except RuntimeError as error:
        explained = worker_error(error)
        if explained is None:
            raise
        raise explained from None
    finally:
        loader.close()


def _reach(objective: Objective, answer: Terms) -> dict[str, dict[str, float]]:
    parts = {
        name: [parameter for parameter in module.parameters() if parameter.requires_grad]
        for name, module in objective.named_children()
    }
    return {
        term: {name: _norm(value, parameters) for name, parameters in parts.items() if parameters}
        for term, value in answer.parts.items()
        if value.requires_grad
    }


def _norm(term: Tensor, parameters: list[nn.Parameter]) -> float:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _peak_memory(device: Device) -> int:
    if device.kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
