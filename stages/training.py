"""What the teacher, the control and the student have in common: their training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.detectors import AnyDetector
from pipeline.stage import Context, Metrics
from pipeline.training import TrainConfig
from stages.common import cache_folder, dataset, predict_split, shortest_edge, spec, torch_predictor, write_json

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.data.loader import TrainingLoader
    from frs.detectors import Detector
    from frs.training import Device, Objective, Recipe
    from frs.training.rank import Rank

TRAINING_OUTPUTS = {"history": "history.json", "metrics": "metrics.jsonl", "tensorboard": "tensorboard"}
"""What `train_detector` writes besides the weights."""
TRAINING_OPTIONAL = frozenset({"tensorboard"})


def training_published(model: str) -> dict[str, str]:
    """Of those, what the run folder shows, for `Stage.publish`."""
    return {"metrics": f"{model}.metrics.jsonl", "tensorboard": f"{model}.tensorboard"}


def in_ranks(context: Context, name: str, config: TrainConfig, work: Callable[[Context], Metrics]) -> Metrics:
    """Do a stage's work, which trains, here, or in the processes that train.devices and train.nodes ask for.

    work: a function of a module, of the context; of several ranks each does all of it. name: the stage's.
    """
    from frs.training import device_kind
    from frs.training.ranks import Ranks, count_devices, launch

    kind = device_kind(context.config.runtime.device)
    devices = count_devices(config.devices, kind)
    if devices == config.nodes == 1:
        return work(context)
    ranks = Ranks(kind, devices, config.nodes, config.rendezvous, f"{context.config.name}/{name}")
    parts = {each.name: getattr(context, each.name) for each in fields(context) if each.name != "progress"}
    return launch(_RanksWork(work, parts), ranks, context.progress)


@dataclass(frozen=True)
class _RanksWork:
    """A stage's work as it is sent to its ranks: all of its context but the console, which is the runner's."""

    work: Callable[[Context], Metrics]
    parts: dict[str, Any]

    def __call__(self, rank: Rank) -> Metrics:
        return self.work(Context(progress=rank, **self.parts))


def is_writer() -> bool:
    """Whether this process writes the stage's outputs: of several ranks the first one of a machine."""
    from frs.distributed import local_rank

    return local_rank() == 0


def new_detector(context: Context, config: AnyDetector, data: CocoDataset) -> Detector:
    """The detector with its initial weights, which are logged."""
    detector, loaded = initial_detector(context, config, data)
    if config.weights is not None:
        context.progress.log(loaded)
    return detector


def initial_detector(context: Context, config: AnyDetector, data: CocoDataset) -> tuple[Detector, str]:
    """The detector with its initial weights, the seed's and the backbone's where they are given; and which they are."""
    import torch

    from frs.detectors import build_detector, load_backbone_weights

    torch.manual_seed(context.config.seed)
    detector = build_detector(spec(config, data))
    if config.weights is None:
        return detector, f"{config.backbone}, from scratch"
    return detector, f"backbone: {load_backbone_weights(detector, config.weights, cache_dir=cache_folder())}"


def device(context: Context) -> Device:
    """The device of this run; sets torch's threads."""
    from frs.training import resolve_device

    return resolve_device(context.config.runtime.device, context.config.runtime.threads)


def train_detector(
    context: Context,
    detector: Detector,
    config: TrainConfig,
    make_objective: Callable[[Detector, Device, int], Objective],
) -> tuple[Objective, Metrics]:
    """Train, and write the outputs `weights` (safetensors), `history` (JSON, one entry an epoch) and `metrics` (JSON lines,
    every `log_every` steps and each epoch), and if asked `tensorboard` (a folder).

    make_objective: from the detector, the device and the number of steps.
    """
    from frs.detectors import parameter_count, save_detector
    from frs.distributed import rank, world_size
    from frs.training import train
    from frs.training.metrics import FILE, TENSORBOARD
    from frs.training.rank import Rank

    where = device(context)
    loader = training_loader(context, config, where, rank=rank(), ranks=world_size())
    steps = config.epochs * loader.steps_per_epoch
    objective = make_objective(detector, where, steps)
    progress = context.progress
    run = progress.train if isinstance(progress, Rank) else partial(train, watcher=progress)
    history = run(
        objective,
        loader,
        recipe(context, config),
        where,
        scratch=context.scratch,
        evaluate=lambda: validation_ap(context, detector, config),
    )
    if is_writer():
        detector.cpu()
        save_detector(context.outputs["weights"], detector)
        write_json(context.outputs["history"], [asdict(epoch) for epoch in history])
        shutil.copyfile(context.scratch / FILE, context.outputs["metrics"])
        if config.tensorboard:
            shutil.copytree(context.scratch / TENSORBOARD, context.outputs["tensorboard"])
    return objective, {
        "params": parameter_count(detector),
        "epochs": config.epochs,
        "steps": steps,
        "ranks": world_size(),
        "final": history[-1].terms,
    }


def recipe(context: Context, config: TrainConfig) -> Recipe:
    """How the configuration says that a detector is to be trained."""
    from frs.training import Recipe

    of_the_loader = {"batch", "drop_empty", "augment", "workers", "resize", "short_side", "long_side", "multiscale"}
    of_the_ranks = {"devices", "nodes", "rendezvous"}
    return Recipe(seed=context.config.seed, **config.model_dump(exclude=of_the_loader | of_the_ranks))


def training_loader(
    context: Context, config: TrainConfig, where: Device, *, rank: int = 0, ranks: int = 1
) -> TrainingLoader:
    """The training's batches, or one rank's part of them."""
    from frs.data.loader import TrainingLoader
    from frs.data.transforms import Augment
    from frs.errors import TrainingError

    if config.batch % (ranks * config.accumulate):
        raise TrainingError(
            f"train.batch is {config.batch}, which {ranks} processes with train.accumulate {config.accumulate} cannot share "
            f"equally; make it a multiple of {ranks * config.accumulate}, or change train.devices"
        )
    size = context.config.input
    return TrainingLoader(
        dataset(context, "train"),
        height=size.height,
        width=size.width,
        batch=config.batch,
        seed=context.config.seed,
        augment=Augment(**config.augment.model_dump()),
        drop_empty=config.drop_empty,
        workers=config.workers,
        shortest_edge=shortest_edge(config),
        pin=where.kind == "cuda",
        rank=rank,
        ranks=ranks,
    )


def validation_ap(context: Context, detector: Detector, config: TrainConfig) -> float | None:
    """AP on the validation split, with the reference decode, at the size that the training is for."""
    from frs.evaluation import evaluate

    edge = shortest_edge(config)
    predictor, batch = torch_predictor(context, detector, "reference"), context.config.validation.batch
    rows = predict_split(context, predictor, batch, None if edge is None else edge.tested)
    return evaluate(context.inputs["val"], rows).AP
