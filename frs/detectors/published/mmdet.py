"""mmdetection's detectors (2.x and 3.x), from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from frs.detectors.base import Detector
from frs.detectors.published.coco import CATEGORY_IDS, category_ids
from frs.detectors.published.config_text import look_up, read_config
from frs.detectors.published.mmdet_families import family_of, read_family, usual
from frs.detectors.published.reading import Checkpoint, Facts, Log, fill, log, read_checkpoint
from frs.errors import WeightsError

RECIPE = """where mmengine is installed, and if you trust the file, save what is needed of it as plain data:
    import torch
    file = torch.load("{path}", map_location="cpu", weights_only=False)
    meta = file["meta"]
    names = (meta.get("dataset_meta") or {{}}).get("classes") or meta.get("CLASSES") or ()
    plain = {{"cfg": str(meta.get("cfg") or meta.get("config") or ""), "CLASSES": [str(name) for name in names]}}
    torch.save({{"state_dict": file["state_dict"], "meta": plain}}, "plain.pth")"""
"""What mmengine pickles besides tensors (a log's history, numpy's numbers) could as well be code."""

INTEGRAL = "bbox_head.integral.project"
"""A constant of GFL's: 0, 1, ... R."""


def from_mmdet(
    path: str | Path,
    *,
    norm_eps: float | None = None,
    backbone_style: str | None = None,
    channel_order: str | None = None,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    log: Log = log,
) -> Detector:
    """A RetinaNet, FCOS, GFL or Faster R-CNN from the file that mmdetection wrote.

    What tensors do not tell is taken from the arguments here (see `Facts`), else from the configuration and the classes in
    the file's `meta` (as text, which is never run), else it is that of mmdetection's published model of the family: an FCOS
    is fed BGR and strides caffe's way, the others RGB and pytorch's; the classes are COCO's 80. log: is given a line for
    each fact and for what was left out. Raises WeightsError for a file that holds more than plain data, with the lines that
    convert it, and for what is none of these detectors.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, recipe=RECIPE.format(path=path))
    checkpoint = _without_constants(checkpoint, log)
    config = _config(checkpoint, log)
    family = family_of(checkpoint, config)
    told = replace(_facts(config), classes=_classes(checkpoint.meta))
    facts = Facts(norm_eps, backbone_style, channel_order, pixel_mean, pixel_std, classes)
    settled = facts.over(told, replace(usual(checkpoint, family), classes=tuple(CATEGORY_IDS)), str(path), log)
    settled["category_ids"] = category_ids(settled["classes"])
    try:
        spec, names = read_family(family, checkpoint, config, settled)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the configuration in the file says something strange of a {family} ({error})"
        ) from None
    return fill(spec, checkpoint, names, log)


def _without_constants(checkpoint: Checkpoint, log: Log) -> Checkpoint:
    """Raises WeightsError for a tensor that is no constant after all."""
    state = dict(checkpoint.state)
    project = state.pop(INTEGRAL, None)
    if project is None:
        return checkpoint
    if not torch.equal(project.float().flatten(), torch.arange(project.numel()).float()):
        raise WeightsError(f"{checkpoint.source}: {INTEGRAL} is not 0, 1, 2, ..., so this is another GFL than ours")
    log(f"{checkpoint.source}: {INTEGRAL} left out, the constant 0 to {project.numel() - 1}")
    return replace(checkpoint, state=state)


def _config(checkpoint: Checkpoint, log: Log) -> dict[str, Any]:
    """mmengine's text is under `cfg`, that of mmdetection 2 under `config`."""
    text = checkpoint.meta.get("cfg") or checkpoint.meta.get("config")
    if not isinstance(text, str):
        log(f"{checkpoint.source}: there is no configuration in the file")
        return {}
    try:
        return read_config(text)
    except ValueError as error:
        log(f"{checkpoint.source}: the configuration in the file cannot be read: {error}")
        return {}


def _classes(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    of_data = meta.get("dataset_meta")
    places = [of_data.get(key) for key in ("classes", "CLASSES")] if isinstance(of_data, dict) else []
    for names in (*places, meta.get("CLASSES")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _facts(config: Mapping[str, Any]) -> Facts:
    """mmdetection 3 has them under `model.data_preprocessor`, 2 in `img_norm_cfg`; neither turns BGR unless it says so."""
    pixels = look_up(config, "model.data_preprocessor")
    order = "bgr_to_rgb"
    if not isinstance(pixels, Mapping) or "mean" not in pixels:
        pixels, order = look_up(config, "img_norm_cfg"), "to_rgb"
    style = look_up(config, "model.backbone.style")
    if not isinstance(pixels, Mapping):
        return Facts(backbone_style=style)
    turned = pixels.get(order, order == "to_rgb")
    return Facts(
        backbone_style=style,
        channel_order="rgb" if turned else "bgr",
        pixel_mean=pixels.get("mean"),
        pixel_std=pixels.get("std"),
    )
