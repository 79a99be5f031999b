"""`frs-pipeline bundle`: what a device needs of a finished run, gathered into one archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from frs.errors import BundleError
from pipeline import __version__
from pipeline.config import Config
from stages.artifacts import onnx_files, onnx_inputs
from stages.common import images_folder, read_json, selection

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.edge.bundle import About, Member, Source

_MODELS = ("teacher", "student")
_SETTINGS = ("engine", "profile", "gates")
"""Sections of the configuration that a device goes by."""
_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def inputs(config: Config) -> dict[str, str]:
    """Label -> "stage/artifact" of what `write_run` reads; the images besides."""
    return {
        "val": "data/val",
        "image_hashes": "data/image_hashes",
        "predictions": "validate/predictions",
        **{model: f"{model}/weights" for model in _MODELS},
        **onnx_inputs(config),
    }


def write_run(
    config: Config,
    paths: Mapping[str, Path],
    hashes: Mapping[str, str],
    stored_images: Path,
    out: Path,
    progress: Callable[[float, float], None],
) -> str:
    """Write the bundle `out`, and return in words what is in it.

    paths, hashes: of `inputs`, by label; the files are as their stages wrote them. stored_images: the data stage's. Raises
    BundleError where an image is not what it was when the run was made.
    """
    from frs.data import read_coco
    from frs.edge.bundle import write_bundle

    data = read_coco(paths["val"], images_folder(config, "val", stored_images))
    wanted = config.bundle.images
    sample = data if wanted == "all" else data.first(wanted)
    sources = [
        *annotations_and_images(sample, read_json(paths["image_hashes"])["val"]),
        *_onnx(config, paths, hashes),
        *_references(sample, paths["predictions"]),
    ]
    images = f"{len(sample.images)} of {len(data.images)} validation images"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(out, _about(config, data, paths, images), sources, progress)
    return f"{out.stat().st_size / 1e6:.1f} MB, {len(onnx_files(config))} ONNX files, {images}"


def _about(config: Config, data: CocoDataset, paths: Mapping[str, Path], images: str) -> About:
    from frs.edge.bundle import About
    from stages.report.stage import describe

    return About(
        producer=f"frs-pipeline {__version__}",
        run=config.name,
        classes=tuple(category.name for category in data.categories),
        category_ids=tuple(category.id for category in data.categories),
        models={model: describe(paths[model], config)[0] for model in _MODELS},
        thresholds=selection(config.export),
        height=config.input.height,
        width=config.input.width,
        settings={name: getattr(config, name).model_dump(mode="json") for name in _SETTINGS},
        note=f"This archive contains {images} of the run's user, as they are. Give it to nobody who may not have them.",
    )


def annotations_and_images(sample: CocoDataset, hashes: Mapping[str, str]) -> Iterator[Source]:
    """The images under numbers: a name may be a path, and may say what is nobody's business."""
    from dataclasses import replace

    from frs.data import coco_text
    from frs.edge.bundle import ANNOTATIONS, Member, Source

    renamed = []
    for number, image in enumerate(sample.images, 1):
        path = sample.path(image)
        suffix = path.suffix.lower()
        name = f"{number:06}{suffix if suffix in _SUFFIXES else '.image'}"
        renamed.append(replace(image, file_name=name))
        changed = (
            "the image is not what it was when the run was made; put it back, or give the run's command again (`frs-pipeline "
            "run`), which scores the new one"
        )
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}; {changed}") from None
        yield Source(Member(f"images/{name}", size, hashes[image.file_name], "image"), path, changed)
    text = coco_text(replace(sample, images=tuple(renamed))).encode()
    yield Source(_member(ANNOTATIONS, text, "annotations"), text)


def _onnx(config: Config, paths: Mapping[str, Path], hashes: Mapping[str, str]) -> Iterator[Source]:
    from frs.edge.bundle import Member, Source
    from frs.export.onnx import read_metadata

    for file in onnx_files(config):
        path = paths[file.label]
        properties = read_metadata(path).to_properties()
        size = path.stat().st_size
        yield Source(
            Member(f"models/{file.name}", size, hashes[file.label], "onnx", file.model, file.precision, properties),
            path,
        )


def _references(sample: CocoDataset, predictions: Path) -> Iterator[Source]:
    """Torch's detections with the graph's decode, of the sample alone."""
    from frs.edge.bundle import Source

    ids = {image.id for image in sample.images}
    for model in _MODELS:
        rows = read_json(predictions / f"{model}-torch-fp32-graph.json")
        text = json.dumps([row for row in rows if row["image_id"] in ids], allow_nan=False).encode()
        yield Source(_member(f"reference/{model}.json", text, "reference", model), text)


def _member(path: str, content: bytes, kind: str, model: str | None = None) -> Member:
    from frs.edge.bundle import Member

    return Member(path, len(content), hashlib.sha256(content).hexdigest(), kind, model)
