"""preflight: what would spoil the trainings is found before the first of them, in one table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.duration import seconds
from pipeline.stage import Context, Metrics, Stage
from pipeline.training import TrainConfig
from stages import student, teacher
from stages.common import (
    DATA_INPUTS,
    dataset,
    predict_split,
    torch_predictor,
    training_facts,
    write_json,
)
from stages.findings import Finding, Verdict, as_table
from stages.given import label
from stages.training import device, in_ranks, initial_detector, recipe, training_loader
from stages.validate import scored_edge

if TYPE_CHECKING:
    from frs.data.loader import TrainingLoader
    from frs.detectors import Detector
    from frs.training import Device
    from frs.training.preflight import Probe

NEEDED = {"frs_features": ("detector", "adapters"), "frs_classes": ("detector",)}
"""Terms that must not be 0, and what their gradients must reach."""
CHECKPOINT, ARTIFACTS = 4 * 3, 4 + 2 * (4 + 2)
"""Bytes of a parameter: with AdamW's two moments; as weights, and in fp32 and fp16 in an ONNX file and in a plan."""
AP_SLACK = 1.0
"""How far the expected AP may lie outside the sample's interval: another decoder, another resize."""


def stage() -> Stage:
    return Stage(
        name="preflight",
        inputs=DATA_INPUTS,
        outputs={"findings": "preflight.json"},
        reads=(
            *("teacher", "student", "distill", "control", "preflight", "input", "seed"),
            *("export.score_threshold", "export.iou_threshold", "export.detections"),
            *("validation.short_side", "validation.long_side"),
        ),
        version=3,
        run=_run,
        external=_external,
        facts=_facts,
        publish={"findings": "preflight.json"},
    )


def _external(config: Config) -> Mapping[str, Path]:
    return {**teacher.external_files(config), **student.external_files(config)}


def _facts(config: Config) -> Mapping[str, Any]:
    """What changes no result of a training, and yet whether it fits."""
    trainings = {"teacher": config.teacher.train, "student": config.student.train}
    how = {model: {key: getattr(train, key) for key in ("devices", "nodes")} for model, train in trainings.items()}
    return {**training_facts(config), **how}


def _run(context: Context) -> Metrics:
    from frs.errors import TrainingError

    findings = list(_findings(context))
    context.progress.log("\n" + as_table(findings))
    write_json(
        context.outputs["findings"],
        [{"verdict": verdict.value, "what": what, "found": found} for verdict, what, found in findings],
    )
    faults = [f"{what}: {found}" for verdict, what, found in findings if not verdict]
    if faults:
        raise TrainingError("\n  ".join(["the trainings would be spoilt, so none was started", *faults]))
    return {what: found for _, what, found in findings}


def _findings(context: Context) -> Iterator[Finding]:
    config = context.config
    where = device(context)
    ours, loaded = _teacher(context)
    yield Verdict.OK, "teacher", loaded
    learner, loaded = initial_detector(context, config.student.detector, dataset(context, "val"))
    yield Verdict.OK, "student", loaded
    names = ", ".join(ours.spec.classes[:4]) + (", ..." if len(ours.spec.classes) > 4 else "")
    yield Verdict.OK, "classes", f"{len(ours.spec.classes)} on both sides, in the data's order: {names}"
    if config.teacher.checkpoint is not None:
        yield _teacher_ap(context, ours, where)
    probes: dict[str, tuple[Probe, TrainConfig]] = {}
    if config.teacher.checkpoint is None:
        probes["teacher"] = _detection_probe(context, config.teacher.train, ours, where), config.teacher.train
    if config.control:
        plain, _ = initial_detector(context, config.student.detector, dataset(context, "val"))
        probes["control"] = _detection_probe(context, config.student.train, plain, where), config.student.train
    ranks = _distillation_probes(context)
    probes["student"] = ranks[0], config.student.train
    yield from _terms({name: found for name, (found, _) in probes.items()}, ranks)
    short = student.too_short(config.distill, config.student.train.epochs * ranks[0].steps)
    if short:
        yield Verdict.FAULT, "distillation", short
    yield _time(probes)
    yield _memory(probes, where)
    yield _disk(context, ours, learner)


def _teacher(context: Context) -> tuple[Detector, str]:
    """As it is given; or, where it is to be trained, as it starts."""
    config = context.config.teacher
    data = dataset(context, "val")
    if config.detector is not None and config.checkpoint is None:
        return initial_detector(context, config.detector, data)
    detector, changed = teacher.given_teacher(context)
    found = f"{label(config.checkpoint)}: {len(detector.state_dict())} tensors, all accounted for"
    return detector, "; ".join(filter(None, (found, changed)))


def _teacher_ap(context: Context, detector: Detector, where: Device) -> Finding:
    """On a sample of the validation images, resized as for the student's training, with the interval for the whole."""
    from frs.data import CocoDataset, write_coco
    from frs.evaluation import paired_bootstrap

    config = context.config
    data = dataset(context, "val")
    step = max(1, len(data.images) // config.preflight.images)
    sample = CocoDataset(data.root, data.images[::step][: config.preflight.images], data.categories)
    predictor = torch_predictor(context, detector.to(where.torch_device), "reference")
    edge = scored_edge(config) if config.student.train.resize == "shortest_edge" else None
    rows = predict_split(context, predictor, config.validation.batch, edge, sample)
    detector.cpu()
    truth = context.outputs["findings"].with_name("sample.json")
    write_coco(sample, truth)
    found = paired_bootstrap(truth, [], rows, samples=200, seed=config.seed)  # against finding nothing
    truth.unlink()
    text = f"{found.difference:.1f} (95% {found.low:.1f} to {found.high:.1f}) on {found.images} validation images"
    expected = config.preflight.teacher_ap
    if expected is None:
        return Verdict.OK, "teacher's AP", f"{text}; preflight.teacher_ap would say what it should be"
    if expected > found.high + AP_SLACK:
        return (
            Verdict.FAULT,
            "teacher's AP",
            (
                f"{text}, but preflight.teacher_ap is {expected:g}: the weights, the classes' order, the normalisation or the "
                "input size are not those it was trained with; correct them, or the expectation"
            ),
        )
    verdict = Verdict.WARNING if expected < found.low - AP_SLACK else Verdict.OK
    return verdict, "teacher's AP", f"{text}; expected {expected:g}"


def _detection_probe(context: Context, config: TrainConfig, detector: Detector, where: Device) -> Probe:
    from frs.training import DetectionObjective
    from frs.training.preflight import probe

    return probe(DetectionObjective(detector), _loader(context, config, where), where, recipe(context, config))


def _distillation_probes(context: Context) -> list[Probe]:
    """Of every rank on this machine, the first one's first."""
    from frs.training.preflight import Probe

    here = context.config.student.train.model_copy(update={"nodes": 1, "rendezvous": None})
    return [Probe(**found) for found in in_ranks(context, "preflight", here, _probe_distillation)["probes"]]


def _probe_distillation(context: Context) -> Metrics:
    """With both terms at full weight, whatever the warm-up and `auto` would do in the first steps."""
    from frs.distill.objective import DistillationObjective, DistillationWeights
    from frs.distributed import gathered, rank, world_size
    from frs.training.preflight import probe

    where, config = device(context), context.config.student.train
    ours, _ = _teacher(context)
    learner, _ = initial_detector(context, context.config.student.detector, dataset(context, "val"))
    where.place(ours)
    objective = DistillationObjective(learner, ours, DistillationWeights(alpha=1.0, beta=1.0, warmup_steps=0))
    loader = training_loader(context, config, where, rank=rank(), ranks=config.nodes * world_size())
    found = probe(objective, loader, where, recipe(context, config))
    return {"probes": gathered(vars(found))}


def _loader(context: Context, config: TrainConfig, where: Device) -> TrainingLoader:
    """With the batches of one device, which its memory must hold and its time be measured on."""
    from frs.training.ranks import count_devices

    return training_loader(context, config, where, ranks=config.nodes * count_devices(config.devices, where.kind))


def _terms(probes: Mapping[str, Probe], ranks: Sequence[Probe]) -> Iterator[Finding]:
    """probes: of each training, the student's among them as it is on the first of its ranks."""
    for name, found in probes.items():
        faults = found.faults({})
        if name == "student":
            faults = [
                (f"on rank {rank}: " if len(ranks) > 1 else "") + fault
                for rank, each in enumerate(ranks)
                for fault in each.faults(NEEDED)
            ]
        text = ", ".join(f"{term} {value:.4g}" for term, value in found.terms.items())
        more = f" (the first of {len(ranks)} processes)" if name == "student" and len(ranks) > 1 else ""
        yield Verdict.FAULT if faults else Verdict.OK, f"{name}'s step", "; ".join(faults) or text + more
    reach = probes["student"].reach
    parts = (
        f"{term} at the " + ", ".join(f"{part} {reach[term][part]:.3g}" for part in NEEDED[term]) for term in NEEDED
    )
    yield Verdict.OK, "gradients", "; ".join(parts)


def _time(probes: Mapping[str, tuple[Probe, TrainConfig]]) -> Finding:
    parts, total = [], 0.0
    for name, (found, config) in probes.items():
        steps = config.epochs * found.steps
        total += steps * found.seconds
        parts.append(f"{name} {seconds(steps * found.seconds)} ({steps} steps of {found.seconds:.2g} s)")
    return Verdict.OK, "time", f"about {seconds(total)} of training: {', '.join(parts)}"


def _memory(probes: Mapping[str, tuple[Probe, TrainConfig]], where: Device) -> Finding:
    import torch

    most = max(found.memory for found, _ in probes.values())
    if where.kind == "cuda":
        there = torch.cuda.get_device_properties(0).total_memory
        return Verdict.OK, "memory", f"{_size(most)} of the GPU's {_size(there)}"
    return Verdict.OK, "memory", f"{_size(most)} of this process"


def _disk(context: Context, ours: Detector, learner: Detector) -> Finding:
    """Two checkpoints of the training under way; in the store, and again in the run folder, what is made of both."""
    from frs.detectors import parameter_count

    sizes = [parameter_count(ours), parameter_count(learner)]
    needed = 2 * CHECKPOINT * max(sizes) + 2 * ARTIFACTS * sum(sizes)
    free = shutil.disk_usage(context.scratch.parent).free
    text = f"{_size(free)} free, about {_size(needed)} needed"
    if free < needed:
        return Verdict.FAULT, "disk", f"{text}; make room, or choose another disk with --runs-dir"
    return Verdict.OK, "disk", text


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
