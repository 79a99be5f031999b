"""A bundle of two small real detectors, exported, on a few images: what a device run does is real, and soon done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frs.data import CocoDataset, evaluation_batches, read_coco
from frs.edge.bundle import About, Member, Source, write_bundle
from frs.edge.metadata import GraphMetadata
from frs.evaluation import Row, predict_dataset
from frs.export.onnx import export_onnx, read_metadata
from frs.export.torch_predictor import TorchPredictor
from pipeline.deployment import EngineConfig, GatesConfig, ProfileConfig
from tests.frs.export.lab import CATEGORY_IDS, busy_detector, pictures

HEIGHT, WIDTH, IMAGES = 64, 96, 6
CLASSES = ("cat", "<script>alert(1)</script>", "bird")
SEEDS = {"teacher": 0, "student": 1}
SETTINGS = {
    "engine": EngineConfig().model_dump(mode="json"),
    "gates": GatesConfig().model_dump(mode="json"),
    "profile": ProfileConfig(runs=20, seconds=0, images=2, threads=1).model_dump(mode="json"),
}


def contents(folder: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Path in the bundle -> content, and what a member says besides. Teacher and student detect on the same images; the
    annotations are what the teacher is surest of."""
    images = pictures(IMAGES, HEIGHT, WIDTH)
    (folder / "images").mkdir()
    records = []
    for number, pixels in enumerate(images, 1):
        name = f"{number:06}.png"
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(folder / "images" / name)
        records.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    document = {
        "images": records,
        "categories": [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
        "annotations": [],
    }
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(document))
    made: dict[str, tuple[bytes, dict[str, Any]]] = {}
    data = read_coco(annotations, folder / "images")
    for model, seed in SEEDS.items():
        detector = busy_detector(images, seed=seed, classes=CLASSES)
        onnx = folder / f"{model}.onnx"
        export_onnx(detector, onnx, height=HEIGHT, width=WIDTH)
        rows = _rows(data, TorchPredictor(detector, HEIGHT, WIDTH, decode="graph"))
        if model == "teacher":
            document["annotations"] = _surest(rows)
        properties = read_metadata(onnx).to_properties()
        made[f"models/{model}.onnx"] = (
            onnx.read_bytes(),
            {"kind": "onnx", "model": model, "precision": "fp32", "properties": properties},
        )
        made[f"reference/{model}.json"] = (json.dumps(rows).encode(), {"kind": "reference", "model": model})
    made["annotations.json"] = (json.dumps(document).encode(), {"kind": "annotations"})
    for record in records:
        path = folder / "images" / str(record["file_name"])
        made[f"images/{path.name}"] = (path.read_bytes(), {"kind": "image"})
    return made


def _rows(data: CocoDataset, predictor: TorchPredictor) -> list[Row]:
    return predict_dataset(predictor, evaluation_batches(data, HEIGHT, WIDTH, 2))


def _surest(rows: list[Row]) -> list[dict[str, Any]]:
    """The five best detections of each image, as objects."""
    found: list[dict[str, Any]] = []
    for image in sorted({row["image_id"] for row in rows}):
        best = sorted((row for row in rows if row["image_id"] == image), key=lambda row: -row["score"])
        for row in best[:5]:
            x, y, w, h = row["bbox"]
            found.append(
                {"id": len(found) + 1, "image_id": image, "category_id": row["category_id"]}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )
    return found


def write_small(
    path: Path,
    made: Mapping[str, tuple[bytes, dict[str, Any]]],
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """These contents as a bundle. thresholds: None for those of its first graph."""
    first = next(facts["properties"] for _, facts in made.values() if facts["kind"] == "onnx")
    graph = GraphMetadata.from_properties(first, path)
    about = About(
        producer="frs-pipeline 0.1.0",
        run="small",
        classes=CLASSES,
        category_ids=CATEGORY_IDS,
        models={model: {"detector": "retinanet", "backbone": "resnet18", "params": 1, "macs": 1} for model in SEEDS},
        thresholds=thresholds or {"score_threshold": graph.score_threshold, "detections": graph.detections},
        height=HEIGHT,
        width=WIDTH,
        settings=settings,
        note="It contains images.",
    )
    sources = [
        Source(Member(name, len(content), hashlib.sha256(content).hexdigest(), **facts), content)
        for name, (content, facts) in made.items()
    ]
    write_bundle(path, about, sources, lambda done, total: None)
    return path
