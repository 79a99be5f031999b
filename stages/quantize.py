"""quantize: int8 variants of the exported files, calibrated on training images, and what they lose on others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.deployment import MADE_OF
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import OnnxFile, quantised
from stages.common import DATA_INPUTS, dataset, runtime_facts, write_json

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.export.fallback import Step
    from frs.export.int8 import Exported, Sensitivity

CALIBRATION_BATCH = 8
"""Images at a time where the graph leaves the batch open."""
AP_SECONDS = 300.0
"""Longer than that `quantize.sensitivity: auto` does not score groups of layers."""


def stage(config: Config) -> Stage:
    files = quantised(config)
    sources = {_source(file) for file in files}
    return Stage(
        name="quantize",
        inputs={**DATA_INPUTS, **{label: f"export/{label}" for label in sorted(sources)}},
        outputs={
            **{file.label: file.name for file in files},
            "sensitivity": "sensitivity.json",
            "quantization": "quantization.json",
        },
        reads=("quantize", "input", "export.batch", "seed", "gates.int8_max_drop"),
        version=2,
        run=_run,
        facts=runtime_facts,
        publish={**{file.label: file.name for file in files}, "sensitivity": "sensitivity.json"},
    )


def _run(context: Context) -> Metrics:
    from frs.export.holdout import divide

    config = context.config.quantize
    data = dataset(context, "train")
    calibration, held = divide(data, config.images, config.holdout, seed=context.config.seed)
    few = len(data.images) < config.images + config.holdout
    context.progress.log(
        f"{len(calibration.images)} training images to calibrate on, {len(held.images)} others to measure the loss on"
        + (f" (there are only {len(data.images)}, not {config.images} + {config.holdout})" if few else "")
    )
    quantization: dict[str, Any] = {}
    sensitivity: dict[str, Any] = {}
    measured: dict[tuple[str, bool], tuple[str, Sensitivity]] = {}
    with _exported(context, calibration, held) as sources:
        for file in quantised(context.config):
            source = sources[_source(file)]
            asked = source.asked_for(first=config.keep_first, last=config.keep_last, patterns=config.keep)
            # The variants for TensorRT have the same Q/DQ at the same places.
            key = (file.model, file.for_tensorrt)
            if key not in measured:
                measured[key] = file.label, source.sensitivity(file.precision, config.sensitivity, AP_SECONDS)
            on, found = measured[key]
            made = _make(context, file, source, found, asked)
            quantization[file.label] = {**made, "calibration": len(calibration.images), "holdout": len(held.images)}
            sensitivity[file.label] = {"measured_on": on, **_report(source, found, frozenset(made["kept"]))}
            context.progress.log(_summed_up(file, made))
    write_json(context.outputs["quantization"], quantization)
    write_json(context.outputs["sensitivity"], sensitivity)
    return {"files": quantization}


@contextmanager
def _exported(context: Context, calibration: CocoDataset, held: CocoDataset) -> Iterator[dict[str, Exported]]:
    """The floating-point files by label, as long as the folder with the decoded images is there."""
    from frs.data import evaluation_batches
    from frs.export.holdout import HeldOut
    from frs.export.int8 import Exported

    size, threads = context.config.input, context.config.runtime.threads
    batch = context.config.export.batch or CALIBRATION_BATCH
    scored, expected = 0, 1

    def said() -> None:
        nonlocal scored
        scored += 1
        context.progress.update(scored, max(scored, expected), scored=f"{scored} files")

    def batches() -> Iterator[Any]:
        return (pixels for pixels, _, _ in evaluation_batches(calibration, size.height, size.width, batch))

    with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
        images = HeldOut(held, Path(folder), height=size.height, width=size.width, batch=batch, threads=threads)
        sources = {
            label: Exported(path, batches, images, Path(folder), threads, said)
            for label, path in context.inputs.items()
            if label not in DATA_INPUTS
        }
        files = quantised(context.config)
        flavours = {(file.model, file.for_tensorrt): sources[_source(file)] for file in files}
        # Each source, each group of each flavour, and each file, unless it has to fall back.
        expected = len(sources) + sum(source.groups for source in flavours.values()) + len(files)
        yield sources


def _source(file: OnnxFile) -> str:
    return f"{file.model}_{MADE_OF[file.precision]}"


def _make(
    context: Context, file: OnnxFile, source: Exported, found: Sensitivity, asked: frozenset[str]
) -> dict[str, Any]:
    """Write the file, with the layers that are asked for in higher precision, and as many more as its limit needs; and what
    came of it."""
    from frs.export.fallback import fall_back, rank
    from frs.export.quantize import quantize

    limit = context.config.gates.int8_max_drop
    ranked = [name for name in rank(source.layers, found.sqnr, found.drops) if name not in asked]
    more: frozenset[str] = frozenset()
    steps: list[Step] = []
    if source.ap is not None:
        more, steps = fall_back(ranked, lambda names: source.drop(file.precision, asked | names), limit)
    kept = [layer.name for layer in source.layers if layer.name in asked | more]
    quantize(source.file, context.outputs[file.label], source.ranges, precision=file.precision, keep=kept)
    return {
        "drop": next((round(step.drop, 4) for step in steps if step.kept == len(more)), None),
        "source_AP": source.ap,
        "limit": limit,
        "layers": len(source.layers),
        "kept": kept,
        "asked_for": sorted(asked),
        "steps": [{"kept": step.kept, "drop": round(step.drop, 4)} for step in steps],
        "missing": {} if steps else {"drop": "no held-out image has an object, so there is no AP to lose"},
    }


def _report(source: Exported, found: Sensitivity, kept: frozenset[str]) -> dict[str, Any]:
    from frs.export.layers import groups

    return {
        "by": found.by,
        "why": found.why,
        "source_AP": source.ap,
        "groups": [
            {
                "name": name,
                "layers": len(part),
                "drop": None if found.drops is None else round(found.drops[name], 4),
                "kept": sum(layer.name in kept for layer in part),
            }
            for name, part in groups(source.layers).items()
        ],
        "layers": [
            {
                "name": layer.name,
                "group": layer.group,
                "sqnr_db": found.sqnr[layer.name],
                "kept": layer.name in kept,
            }
            for layer in source.layers
        ],
    }


def _summed_up(file: OnnxFile, made: dict[str, Any]) -> str:
    drop, kept, all_of_them = made["drop"], len(made["kept"]), made["layers"]
    change = "AP not measured"
    if drop is not None:
        change = f"{abs(drop):.2f} AP {'lost' if drop >= 0 else 'gained'} on the held-out images"
    left = "every layer quantised" if not kept else f"{kept} of {all_of_them} layers kept in higher precision"
    nothing = ", so that nothing is int8" if kept == all_of_them else ""
    return f"{file.name}: {change}; {left}{nothing}"
