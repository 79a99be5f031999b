"""A data set of drawn rectangles, and a detector small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from frs.data import CocoDataset, read_coco
from frs.detectors import RetinaNetSpec


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("rectangles")
    draw_rectangles(folder, count=12)
    return read_coco(folder / "annotations.json", folder / "images")


def draw_rectangles(folder: Path, count: int, seed: int = 3) -> None:
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(exist_ok=True)
    images: list[Any] = []
    annotations: list[Any] = []
    for number in range(1, count + 1):
        picture = Image.fromarray(generator.integers(0, 90, (64, 64, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(picture)
        for _ in range(2):
            x, y = generator.integers(0, 36, 2).tolist()
            w, h = generator.integers(14, 28, 2).tolist()
            draw.rectangle((x, y, x + w - 1, y + h - 1), fill=(250, 210, 40))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 7, "bbox": [x, y, w, h]}
                | {"area": w * h, "iscrowd": 0}
            )
        picture.save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
    categories = [{"id": 7, "name": "rectangle"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def small() -> RetinaNetSpec:
    return RetinaNetSpec(
        classes=("rectangle",),
        category_ids=(7,),
        backbone="resnet18",
        backbone_options={"channels": [8, 16, 24, 32], "stem_width": 8},
        fpn_channels=16,
        levels=3,
        head_depth=1,
        head_norm="group",
        anchor_scale=2.0,
    )
