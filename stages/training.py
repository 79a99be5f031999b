"""What the teacher, the control and the student have in common: their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.config import TrainConfig
from pipeline.detectors import AnyDetector
from pipeline.stage import Context, Metrics
from stages.common import cache_folder, dataset, predict_split, shortest_edge, spec, torch_predictor, write_json

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.data.loader import TrainingLoader
    from frs.detectors import Detector
    from frs.training import Device, Objective


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
    """Train, and write the outputs `weights` (safetensors) and `history` (JSON, one entry an epoch).

    make_objective: from the detector, the device and the number of steps.
    """
    from frs.detectors import parameter_count, save_detector
    from frs.training import Recipe, train

    where = device(context)
    loader = training_loader(context, config, where)
    fields = {"batch", "drop_empty", "augment", "workers", "resize", "short_side", "long_side", "multiscale"}
    recipe = Recipe(seed=context.config.seed, **config.model_dump(exclude=fields))
    steps = config.epochs * loader.steps_per_epoch
    objective = make_objective(detector, where, steps)
    history = train(
        objective,
        loader,
        recipe,
        where,
        scratch=context.scratch,
        watcher=context.progress,
        evaluate=lambda: validation_ap(context, detector, config),
    )
    detector.cpu()
    save_detector(context.outputs["weights"], detector)
    write_json(context.outputs["history"], [asdict(epoch) for epoch in history])
    return objective, {
        "params": parameter_count(detector),
        "epochs": config.epochs,
        "steps": steps,
        "final": history[-1].terms,
    }


def training_loader(context: Context, config: TrainConfig, where: Device) -> TrainingLoader:
    """The training's batches."""
    from frs.data.loader import TrainingLoader
    from frs.data.transforms import Augment

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
    )


def validation_ap(context: Context, detector: Detector, config: TrainConfig) -> float | None:
    """AP on the validation split, with the reference decode, at the size that the training is for."""
    from frs.evaluation import evaluate

    edge = shortest_edge(config)
    predictor, batch = torch_predictor(context, detector, "reference"), context.config.validation.batch
    rows = predict_split(context, predictor, batch, None if edge is None else edge.tested)
    return evaluate(context.inputs["val"], rows).AP
