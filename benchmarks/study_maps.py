"""Where a run's teacher finds its features rich, next to the boxes that box-masked imitation looks at.

    python -m benchmarks.study_maps runs/quickstart [docs/study-maps.jpg] [--images 2] [--levels 2]

The picture has a row for each validation image: the annotated boxes, and for each of the finest levels the mask of the boxes
and the score, dark at 0 and bright at 1. The images are those with the most and the fewest objects, and so on evenly between.
Printed is, over all validation images and by level, how much of the places and how much of the score lies in boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from frs.data import CocoDataset, CocoImage, read_coco
from frs.detectors import Detector, Targets, load_detector
from frs.distill.scores import feature_richness, inside_boxes
from frs.edge.draw import draw_boxes, draw_heat, side_by_side
from frs.edge.image import letterbox, to_nchw
from pipeline.loading import load_config
from pipeline.manifest import Manifest
from stages.common import images_folder
from stages.report.pictures import TRUTH, spread

PIXELS = 384
"""Of a panel's longer side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run whose teacher is trained")
    parser.add_argument("picture", type=Path, nargs="?", help="what is written, if anything")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--levels", type=int, default=2, help="of the pyramid, from the finest")
    options = parser.parse_args()
    manifest = Manifest.load(options.run)
    if manifest is None or not {"data", "teacher"} <= set(manifest.stages):
        parser.error(f"{options.run} is no run with a trained teacher; make one: frs-pipeline run ... --until teacher")
    config = load_config(options.run / "config.yaml")
    data = manifest.stages["data"].entry
    val = read_coco(data.path("val"), images_folder(config, "val", data.path("images")))
    teacher = load_detector(manifest.stages["teacher"].entry.path("weights")).eval()
    size = config.input.height, config.input.width
    looks = (look(teacher, val, image, size) for image in val.images)
    print(table(teacher.spec.strides, looks))
    if options.picture is not None:
        chosen = [
            row(look(teacher, val, image, size), size, options.levels) for image in spread(val.images, options.images)
        ]
        stacked(chosen).save(options.picture, quality=88)


@dataclass(frozen=True)
class Level:
    """mask, score: (1, H, W), 0 to 1."""

    stride: int
    mask: torch.Tensor
    score: torch.Tensor


@dataclass(frozen=True)
class Look:
    """A letterboxed image (H, W, 3), its annotated boxes (N, 4) in pixels of it, and the pyramid's levels."""

    photograph: npt.NDArray[np.uint8]
    boxes: torch.Tensor
    levels: tuple[Level, ...]


@torch.inference_mode()
def look(teacher: Detector, data: CocoDataset, image: CocoImage, size: tuple[int, int]) -> Look:
    """size: the teacher's (height, width)."""
    photograph, placed = letterbox(data.load(image), *size)
    pixels = torch.from_numpy(to_nchw([photograph]))
    boxes = torch.from_numpy(placed.to_input(image.boxes[~image.crowd]))[None]
    flags = torch.ones(boxes.shape[:2], dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), flags, ~flags)
    logits = teacher.class_logits(teacher.features(teacher.normalize(pixels, None)))
    levels = (
        Level(stride, inside_boxes(level, targets, stride), feature_richness(level))
        for level, stride in zip(logits, teacher.spec.strides, strict=True)
    )
    return Look(photograph, boxes[0], tuple(levels))


def table(strides: Sequence[int], looks: Iterable[Look]) -> str:
    """Markdown. The mean score outside is what a place without an annotated object still weighs."""
    sums = torch.zeros(len(strides), 4, dtype=torch.float64)  # places, those in boxes, score, score in boxes
    for each in looks:
        for found, level in zip(sums, each.levels, strict=True):
            score, mask = level.score.double(), level.mask.double()
            found += torch.stack([torch.ones_like(mask).sum(), mask.sum(), score.sum(), (score * mask).sum()])
    lines = ["| stride | places in boxes | score in boxes | mean score in boxes | outside |", "|---|---|---|---|---|"]
    for stride, (places, inside, score, rich) in zip(strides, sums.tolist(), strict=True):
        outside = (score - rich) / max(places - inside, 1)
        lines.append(
            f"| {stride} | {inside / places:.0%} | {rich / score:.0%} | {rich / max(inside, 1):.3f} | {outside:.3f} |"
        )
    return "\n".join(lines)


def row(found: Look, size: tuple[int, int], levels: int) -> Image.Image:
    """The places of a level are drawn as they are, not smoothed."""
    photograph = found.photograph
    panels = [(f"annotated: {len(found.boxes)}", draw_boxes(photograph, found.boxes.numpy(), TRUTH))]
    for level in found.levels[:levels]:
        covered = float((level.score * level.mask).sum() / level.score.sum())
        panels.append(
            (f"stride {level.stride}: box mask", draw_heat(photograph, enlarged(level.mask, level.stride, size)))
        )
        panels.append(
            (f"richness, {covered:.0%} in boxes", draw_heat(photograph, enlarged(level.score, level.stride, size)))
        )
    return side_by_side(panels, PIXELS)


def enlarged(places: torch.Tensor, stride: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(1, H, W) of a level -> the (height, width) of the input."""
    whole: npt.NDArray[np.float32] = np.kron(places[0].numpy(), np.ones((stride, stride), dtype=np.float32))
    return whole[: size[0], : size[1]]


def stacked(rows: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(each.width for each in rows), sum(each.height for each in rows)), "white")
    top = 0
    for each in rows:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


if __name__ == "__main__":
    main()
