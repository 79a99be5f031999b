"""data: the quick-start's tiles, or the user's own COCO data set, checked and listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from frs.errors import DataError
from pipeline.config import CocoData, Config, TreesData
from pipeline.stage import Context, Metrics, Stage
from stages.common import cache_folder, images_folder, write_json

if TYPE_CHECKING:
    from frs.data import Category


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
    categories = {}
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
        categories[split] = data.categories
        context.progress.log(f"{split}: {len(data.images)} images, {boxes} boxes")
    _check_categories(categories["train"], categories["val"])
    _check_splits(hashes)
    metrics["classes"] = [category.name for category in categories["val"]]
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


def _check_categories(train: tuple[Category, ...], val: tuple[Category, ...]) -> None:
    """A label is a place in this list: with two lists every class would be learnt under another's number."""
    if train != val:
        odd = sorted({f"{each.id} {each.name}" for each in set(train) ^ set(val)})
        raise DataError(
            f"data: the two annotation files do not have the same categories ({', '.join(odd[:6])} are in one alone); give "
            "both the same list, with the same ids and names"
        )


def _check_splits(hashes: Mapping[str, Mapping[str, str]]) -> None:
    """An image that is trained on and scored on makes every AP in the report a lie."""
    trained = {content: name for name, content in hashes["train"].items()}
    shared = [(trained[content], name) for name, content in hashes["val"].items() if content in trained]
    if shared:
        raise DataError(
            f"data: {len(shared)} images are in both splits (first: {shared[0][0]} in train is {shared[0][1]} in "
            "val); remove them from one of the two annotation files"
        )
