"""data: the quick-start's tiles, or the user's own COCO data set, checked and listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from frs.errors import DataError
from pipeline.config import CocoData, Config, TreesData
from pipeline.errors import ConfigError
from pipeline.stage import Context, Metrics, Stage
from stages.common import cache_folder, images_folder, write_json

if TYPE_CHECKING:
    from frs.data import CocoDataset


def stage() -> Stage:
    return Stage(
        name="data",
        inputs={},
        outputs={
            "train": "train.json",
            "val": "val.json",
            "images": "images",
            "image_hashes": "images.json",
        },
        reads=("data",),
        version=1,
        run=_run,
        external=_external,
    )


def _external(config: Config) -> Mapping[str, Path]:
    if isinstance(config.data, TreesData):
        return {}  # the archive's sha256 is pinned
    from frs.data import image_files

    splits = {"train": config.data.train, "val": config.data.val}
    files = {f"data.{name}.annotations": split.annotations for name, split in splits.items()}
    for name, split in splits.items():
        if not split.annotations.is_file():
            raise ConfigError(f"data.{name}.annotations: there is no file {split.annotations}; correct the path")
        if not split.images.is_dir():
            raise ConfigError(f"data.{name}.images: there is no folder {split.images}; correct the path")
        found = image_files(split.annotations, split.images)
        files |= {f"data.{name}.images/{file}": path for file, path in found.items()}
    return files


def _run(context: Context) -> Metrics:
    from frs.data import read_coco, write_coco

    config = context.config.data
    context.outputs["images"].mkdir(exist_ok=True)
    sources = _trees(config, context) if isinstance(config, TreesData) else _coco(config)
    metrics: Metrics = {}
    hashes: dict[str, dict[str, str]] = {}
    splits: dict[str, CocoDataset] = {}
    for split, source in sources.items():
        folder = images_folder(context.config, split, context.outputs["images"])
        data = read_coco(source, folder)
        write_coco(data, context.outputs[split])
        hashes[split] = {image.file_name: context.hash_file(data.path(image)) for image in data.images}
        boxes = sum(len(image.boxes) for image in data.images)
        metrics[split] = {"images": len(data.images), "boxes": boxes}
        if not any((~image.crowd).any() for image in data.images):
            raise DataError(
                f"{source}: the {split} split has not one object that is no crowd; there is nothing to find in it"
            )
        splits[split] = data
        context.progress.log(f"{split}: {len(data.images)} images, {boxes} boxes")
    _check_categories(splits["train"], splits["val"])
    _check_splits(hashes)
    if isinstance(config, CocoData):
        _check_images(splits, context)
    metrics["classes"] = [category.name for category in splits["val"].categories]
    write_json(context.outputs["image_hashes"], hashes)
    return metrics


def _trees(config: TreesData, context: Context) -> dict[str, Path]:
    from frs.data.trees import ARCHIVE, build_trees
    from frs.packages import fetch

    archive = config.archive or fetch(ARCHIVE, cache_folder())
    folder = context.outputs["images"].parent
    build_trees(
        archive,
        folder,
        tile=config.tile,
        stride=config.stride,
        validation_fraction=config.validation_fraction,
        min_visible=config.min_visible,
        limit=config.limit,
    )
    return {split: folder / f"{split}.json" for split in ("train", "val")}


def _coco(config: CocoData) -> dict[str, Path]:
    return {"train": config.train.annotations, "val": config.val.annotations}


def _check_categories(train: CocoDataset, val: CocoDataset) -> None:
    """A label is a place in this list: with two lists every class would be learnt under another's number."""
    from frs.data.check import odd_categories

    odd = [f"{each.id} {each.name}" for each in odd_categories(train.categories, val.categories)]
    if odd:
        raise DataError(
            f"data: the two annotation files do not have the same categories ({', '.join(odd[:6])} are in one alone); give "
            "both the same list, with the same ids and names"
        )


def _check_splits(hashes: Mapping[str, Mapping[str, str]]) -> None:
    """An image that is trained on and scored on makes every AP in the report a lie."""
    from frs.data.check import shared_images
    from frs.data.faults import Kind

    shared = shared_images(hashes["train"], hashes["val"])
    if shared:
        raise DataError(
            f"data: {Kind.SHARED.counted(len(shared))} (first: {shared[0][0]} in train is {shared[0][1]} in "
            "val); remove each from one of the two annotation files"
        )


def _check_images(splits: Mapping[str, CocoDataset], context: Context) -> None:
    """An image that cannot be decoded would stop the training days later, at the batch that meets it."""
    from frs.data.check import check_images
    from frs.data.faults import summary

    faults = []
    for split, data in splits.items():

        def watch(done: int, total: int, split: str = split) -> None:
            context.progress.update(done, total, images=f"{split} {done}/{total}")

        faults += check_images(data, watch)
    if faults:
        counts, *first = summary(faults)
        raise DataError("\n  ".join([f"data: {counts}; `frs-pipeline check` lists them all", *first]))
