"""`frs-pipeline check`: configuration, data, weights and environment are looked at; nothing runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import CocoData, Config
from pipeline.published import Published
from pipeline.stage import Progress
from stages.common import cache_folder, spec, version_of
from stages.findings import Finding, Verdict

if TYPE_CHECKING:
    from frs.data import CocoDataset, Fault
    from frs.detectors import Detector

PICTURE, LISTING = "worst.png", "faults.txt"
_SHOWN = 10


def run_check(config: Config, out: Path | None = None, progress: Progress | None = None) -> Iterator[Finding]:
    """Look at everything that a run needs before it needs it.

    A picture of the image with most boxes at fault, if there is one, is written to `out/worst.png`, and all faults of the
    data, where they are too many to be shown, to `out/faults.txt`.
    """
    if out is not None:
        for name in (PICTURE, LISTING):
            (out / name).unlink(missing_ok=True)
    splits: dict[str, CocoDataset] = {}
    yield from _trees(config) if not isinstance(config.data, CocoData) else _coco(config.data, splits, out, progress)
    yield from _environment(config)
    if version_of("torch") and version_of("timm"):
        yield from _teacher(config, splits.get("val"))
        yield from _detectors(config)


def _trees(config: Config) -> Iterator[Finding]:
    from frs.data.trees import ARCHIVE
    from frs.errors import PackageError
    from frs.packages import check

    assert not isinstance(config.data, CocoData)
    if config.data.archive is None:
        cached = (cache_folder() / ARCHIVE.file).exists()
        yield Verdict.OK, "data", f"trees, {'already downloaded' if cached else 'will be downloaded by pip (21 MB)'}"
        return
    try:
        check(ARCHIVE, config.data.archive)
        yield Verdict.OK, "data", f"trees, from {config.data.archive}"
    except PackageError as error:
        yield Verdict.FAULT, "data", str(error)


def _coco(
    config: CocoData, splits: dict[str, CocoDataset], out: Path | None, progress: Progress | None
) -> Iterator[Finding]:
    """What can be used of each split is put into `splits`."""
    from frs.data.check import check_images, check_objects, check_splits
    from frs.data.coco import examine
    from frs.errors import DataError

    found: dict[str, list[Fault]] = {}
    for name, split in (("train", config.train), ("val", config.val)):

        def watch(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress.update(done, total, images=f"{name} {done}/{total}")

        try:
            data, faults = examine(split.annotations, split.images)
        except DataError as error:
            yield Verdict.FAULT, f"data.{name}", str(error)
            continue
        splits[name] = data
        found[name] = faults = [*faults, *check_objects(data), *check_images(data, watch)]
        yield from _by_kind(f"data.{name}", faults, out)
        if all(fault.mended for fault in faults):
            boxes = sum(len(image.boxes) for image in data.images)
            summed = f"{split.annotations}: {len(data.images)} images, all decoded, and {boxes} boxes"
            yield Verdict.OK, f"data.{name}", summed
    if len(splits) == 2:
        yield from _by_kind("data", check_splits(splits["train"], splits["val"]), out)
    if out is not None:
        yield from _worst(splits, found, out)


def _by_kind(what: str, faults: Sequence[Fault], out: Path | None) -> Iterator[Finding]:
    """Counted, and the first of each kind by name; the others in a file."""
    kinds = dict.fromkeys(fault.kind for fault in sorted(faults, key=lambda fault: fault.mended))
    for kind in kinds:
        these = [fault for fault in faults if fault.kind is kind]
        more = []
        if len(these) > _SHOWN:
            more = [f"and {len(these) - _SHOWN:,} more" + (f", in {out / LISTING}" if out is not None else "")]
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                with (out / LISTING).open("a", encoding="utf-8", errors="backslashreplace") as listing:
                    listing.writelines(f"{what}: {fault}\n" for fault in these)
        lines = [kind.counted(len(these)), *map(str, these[:_SHOWN]), *more]
        yield Verdict.WARNING if these[0].mended else Verdict.FAULT, what, "\n".join(lines)


def _worst(splits: dict[str, CocoDataset], faults: dict[str, list[Fault]], out: Path) -> Iterator[Finding]:
    """Draw the image with most boxes at fault, of those that can be read."""
    from frs.data.picture import draw_faults
    from frs.errors import DataError

    groups: dict[tuple[str, int | None], list[Fault]] = {}
    for name, found in faults.items():
        for fault in found:
            if fault.box is not None:
                groups.setdefault((name, fault.image), []).append(fault)
    for (name, key), these in sorted(groups.items(), key=lambda group: -len(group[1])):
        data = splits[name]
        for image in data.images:
            if image.id != key:
                continue
            try:
                pixels = data.load(image)
            except DataError:
                continue
            title = f"image {image.id} ({image.file_name}) of {name}: {len(these)} of its boxes at fault"
            out.mkdir(parents=True, exist_ok=True)
            draw_faults(pixels, image.boxes, these, title).save(out / PICTURE)
            yield Verdict.WARNING, "picture", f"{out / PICTURE}: {title}"
            return


def _teacher(config: Config, data: CocoDataset | None) -> Iterator[Finding]:
    from frs.errors import WeightsError

    checkpoint = config.teacher.checkpoint
    if checkpoint is None:
        return
    if isinstance(checkpoint, Published) and checkpoint.name:
        yield Verdict.OK, "teacher.checkpoint", f"{checkpoint}, which torchvision downloads when the run starts"
        return
    from stages.given import fit_teacher, load_teacher

    said: list[str] = []
    try:
        detector = load_teacher(config.teacher, said.append)
        classes = len(detector.spec.classes)
        data = data if data is not None and data.categories else None
        fitted, changed = fit_teacher(config.teacher, detector, config.student.detector, data)
        summed = f"{checkpoint}: {fitted.spec.backbone}, {classes} classes" + (f"; {changed}" if changed else "")
        yield Verdict.OK, "teacher.checkpoint", "\n".join([summed, *said])
    except WeightsError as error:
        yield Verdict.FAULT, "teacher.checkpoint", str(error)


def _detectors(config: Config) -> Iterator[Finding]:
    """Build both, with the weights that are files; nothing is downloaded."""
    from frs.data import Category, CocoDataset
    from frs.detectors import build_detector, load_backbone_weights
    from frs.errors import TrainingError, WeightsError
    from frs.training.freezing import first_stages

    any_class = CocoDataset(Path(), (), (Category(1, "object"),))
    for model, section in (("teacher", config.teacher), ("student", config.student)):
        if section.detector is None or (section is config.teacher and config.teacher.checkpoint is not None):
            continue  # the teacher is not built from its section
        weights = section.detector.weights
        try:
            detector = build_detector(spec(section.detector, any_class))
            loaded: object = weights or "none, trained from scratch"
            if weights == "imagenet":
                loaded = "imagenet, which timm downloads when the training starts, unless it has them already"
            if isinstance(weights, Path):
                loaded = load_backbone_weights(detector, weights, cache_dir=cache_folder())
            first_stages(detector.backbone, section.train.frozen_stages)
            yield Verdict.OK, f"{model}.detector", f"{section.detector.backbone}; weights: {loaded}"
            if model in config.quantize.models:
                yield from _kept(config, model, detector)
        except (WeightsError, TrainingError) as error:
            yield Verdict.FAULT, f"{model}.detector", str(error)


def _kept(config: Config, model: str, detector: Detector) -> Iterator[Finding]:
    """Whether `quantize.keep` names layers of the detector: the stage that needs them comes after the trainings."""
    from frs.errors import ExportError
    from frs.export.layers import modules, named

    if not config.quantize.keep:
        return
    try:
        kept = named(config.quantize.keep, modules(detector))
        yield Verdict.OK, "quantize.keep", f"{len(kept)} layers of the {model}: {', '.join(sorted(kept))}"
    except ExportError as error:
        yield Verdict.FAULT, "quantize.keep", str(error)


def _environment(config: Config) -> Iterator[Finding]:
    for names, extra in ((("torch",), "train"), (("timm",), "train"), (("onnxruntime", "onnxruntime-gpu"), "ort")):
        version = version_of(*names)
        missing = f"missing; pip install '.[{extra}]' in the project's folder brings it"
        yield Verdict.OK if version else Verdict.FAULT, names[0], version or missing
    builder = version_of("tensorrt", "tensorrt-rtx", "tensorrt_rtx")
    yield (
        Verdict.OK,
        "TensorRT",
        builder or "none here, so no engine will be built; pip install '.[rtx]' in the project's folder brings one",
    )
    found = f"device {config.runtime.device}, threads {config.runtime.threads or 'as many as cores'}"
    yield Verdict.OK, "runtime", found
