"""`frs-pipeline check`: configuration, data, weights and environment are looked at; nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config import CocoData, Config
from stages.common import cache_folder, version_of

Finding = tuple[bool, str, str]
"""(fine, what was looked at, what was found)."""


def run_check(config: Config) -> list[Finding]:
    """Look at everything that a run needs before it needs it."""
    return [*_data(config), *_weights(config), *_environment(config)]


def _data(config: Config) -> Iterator[Finding]:
    if not isinstance(config.data, CocoData):
        from frs.data.trees import ARCHIVE
        from frs.errors import PackageError
        from frs.packages import check

        if config.data.archive is None:
            cached = (cache_folder() / ARCHIVE.file).exists()
            yield True, "data", f"trees, {'already downloaded' if cached else 'will be downloaded by pip (21 MB)'}"
            return
        try:
            check(ARCHIVE, config.data.archive)
            yield True, "data", f"trees, from {config.data.archive}"
        except PackageError as error:
            yield False, "data", str(error)
        return
    from frs.data import check_coco

    for name, split in (("train", config.data.train), ("val", config.data.val)):
        faults = check_coco(split.annotations, split.images)
        errors = [fault for fault in faults if fault.kind == "error"]
        for fault in faults:
            yield fault.kind != "error", f"data.{name}", f"{fault.where}: {fault.message}"
        if not errors:
            yield True, f"data.{name}", f"{split.annotations} can be used"


def _weights(config: Config) -> Iterator[Finding]:
    from frs.errors import WeightsError

    checkpoint = config.teacher.checkpoint
    if checkpoint is not None:
        from frs.detectors import load_detector

        try:
            found = load_detector(checkpoint).spec
            yield True, "teacher.checkpoint", f"{checkpoint}: {found.backbone}, {len(found.classes)} classes"
        except WeightsError as error:
            yield False, "teacher.checkpoint", str(error)
    for model, section in (("teacher", config.teacher), ("student", config.student)):
        weights = section.detector.weights
        if isinstance(weights, Path):
            there = weights.is_file()
            yield there, f"{model}.detector.weights", f"{weights}" if there else f"{weights}: no such file"
        else:
            yield True, f"{model}.detector.weights", weights or "none: trained from scratch"


def _environment(config: Config) -> Iterator[Finding]:
    for names, extra in ((("torch",), "train"), (("timm",), "train"), (("onnxruntime", "onnxruntime-gpu"), "ort")):
        version = version_of(*names)
        found = version or f"missing; pip install 'frs-pipeline[{extra}]'"
        yield version is not None, names[0], found
    builder = version_of("tensorrt", "tensorrt-rtx", "tensorrt_rtx")
    yield True, "TensorRT", builder or "none here: no engine will be built (pip install 'frs-pipeline[rtx]')"
    yield True, "runtime", f"device {config.runtime.device}, threads {config.runtime.threads or 'as many as cores'}"
