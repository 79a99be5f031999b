"""Random data sets and detections, as files of COCO's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from frs.evaluation import Row


def scene(folder: Path, seed: int, images: int = 12, classes: int = 3) -> tuple[Path, list[Row], list[Row]]:
    """Annotations, and the rows of two detectors: both find most objects, inexactly, and invent some."""
    generator = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(int(generator.integers(0, 6))):
            x, y = generator.uniform(0, 300, 2).tolist()
            w, h = generator.uniform(8, 160, 2).tolist()
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(generator.integers(classes)) + 3}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(generator.random() < 0.1)}
            )
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 500, "height": 500} for i in range(1, images + 1)],
        "categories": [{"id": k + 3, "name": f"class {k}"} for k in range(classes)],
        "annotations": annotations,
    }
    path = folder / f"{seed}.json"
    path.write_text(json.dumps(document))
    return path, _rows(document, generator, 0.12), _rows(document, generator, 0.2)


def _rows(document: dict[str, Any], generator: np.random.Generator, noise: float) -> list[Row]:
    rows: list[Row] = []
    for annotation in document["annotations"]:
        if generator.random() < 0.85:
            x, y, w, h = annotation["bbox"]
            jitter = generator.normal(0, noise, 4) * [w, h, w, h]
            box = [x + jitter[0], y + jitter[1], max(1.0, w + jitter[2]), max(1.0, h + jitter[3])]
            rows.append(_row(annotation["image_id"], annotation["category_id"], box, generator.beta(4, 2)))
    for _ in range(40):
        box = [*generator.uniform(0, 300, 2), *generator.uniform(8, 160, 2)]
        image, category = int(generator.integers(len(document["images"]))) + 1, int(generator.integers(3)) + 3
        if category < 3 + len(document["categories"]):
            rows.append(_row(image, category, box, generator.beta(2, 4)))
    return rows


def _row(image: int, category: int, box: list[float], score: float) -> Row:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(v) for v in box],
        "score": round(float(score), 6),
    }
