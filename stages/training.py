"""What the teacher, the control and the student have in common: their training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.config import RetinaNetConfig, TrainConfig
from pipeline.stage import Context, Metrics
from stages.common import cache_folder, dataset, predict_split, spec, torch_predictor, write_json

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.detectors import Detector
    from frs.training import Device, Objective

TRAINING_OUTPUTS = {"history": "history.json", "metrics": "metrics.jsonl", "tensorboard": "tensorboard"}
"""What `train_detector` writes besides the weights."""
TRAINING_OPTIONAL = frozenset({"tensorboard"})


def training_published(model: str) -> dict[str, str]:
    """Of those, what the run folder shows, for `Stage.publish`."""
    return {"metrics": f"{model}.metrics.jsonl", "tensorboard": f"{model}.tensorboard"}


def new_detector(context: Context, config: RetinaNetConfig, data: CocoDataset) -> Detector:
    """The detector with its initial weights: the seed's, and the backbone's where they are given."""
    import torch

    from frs.detectors import build_detector, load_backbone_weights

    torch.manual_seed(context.config.seed)
    detector = build_detector(spec(config, data))
    if config.weights is not None:
        loaded = load_backbone_weights(detector, config.weights, cache_dir=cache_folder())
        context.progress.log(f"backbone: {loaded}")
    return detector


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
    from frs.data.loader import TrainingLoader
    from frs.data.transforms import Augment
    from frs.detectors import parameter_count, save_detector
    from frs.training import Recipe, train
    from frs.training.metrics import FILE, TENSORBOARD

    size, seed = context.config.input, context.config.seed
    where = device(context)
    loader = TrainingLoader(
        dataset(context, "train"),
        height=size.height,
        width=size.width,
        batch=config.batch,
        seed=seed,
        augment=Augment(**config.augment.model_dump()),
        drop_empty=config.drop_empty,
        workers=config.workers,
    )
    fields = {"batch", "drop_empty", "augment", "workers"}
    recipe = Recipe(seed=seed, **config.model_dump(exclude=fields))
    steps = config.epochs * loader.steps_per_epoch
    objective = make_objective(detector, where, steps)
    history = train(
        objective,
        loader,
        recipe,
        where,
        scratch=context.scratch,
        watcher=context.progress,
        evaluate=lambda: validation_ap(context, detector),
    )
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
        "final": history[-1].terms,
    }


def validation_ap(context: Context, detector: Detector) -> float | None:
    """AP on the validation split, with the reference decode."""
    from frs.evaluation import evaluate

    rows = predict_split(context, torch_predictor(context, detector, "reference"), context.config.validation.batch)
    return evaluate(context.inputs["val"], rows).AP
