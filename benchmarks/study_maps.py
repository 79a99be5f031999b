"""Where a run's teacher finds its features rich, next to the boxes that box-masked imitation looks at.

    python -m benchmarks.study_maps runs/quickstart docs/study-maps.jpg [--images 2] [--levels 2]

A row for each validation image: the annotated boxes, and for each of the finest levels the mask of the boxes and the score,
dark at 0 and bright at 1. The images are those with the most and the fewest objects, and so on evenly between.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("picture", type=Path, help="what is written")
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
    rows = [row(teacher, val, image, size, options.levels) for image in spread(val.images, options.images)]
    stacked(rows).save(options.picture, quality=88)


@torch.inference_mode()
def row(teacher: Detector, data: CocoDataset, image: CocoImage, size: tuple[int, int], levels: int) -> Image.Image:
    """size: the teacher's (height, width). The places of a level are drawn as they are, not smoothed."""
    photograph, placed = letterbox(data.load(image), *size)
    pixels = torch.from_numpy(to_nchw([photograph]))
    boxes = torch.from_numpy(placed.to_input(image.boxes[~image.crowd]))[None]
    flags = torch.ones(boxes.shape[:2], dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), flags, ~flags)
    logits = teacher.class_logits(teacher.features(teacher.normalize(pixels, None)))
    panels = [(f"annotated: {boxes.shape[1]}", draw_boxes(photograph, boxes[0].numpy(), TRUTH))]
    for level, stride in list(zip(logits, teacher.spec.strides, strict=True))[:levels]:
        mask, richness = inside_boxes(level, targets, stride), feature_richness(level)
        covered = float((richness * mask).sum() / richness.sum())
        panels.append((f"stride {stride}: box mask", draw_heat(photograph, enlarged(mask, stride, size))))
        panels.append((f"richness, {covered:.0%} in boxes", draw_heat(photograph, enlarged(richness, stride, size))))
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
