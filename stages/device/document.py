"""device.json: report.json's schema, as far as a device can fill it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from frs.edge.bundle import About, Bundle
from pipeline.deployment import GatesConfig
from stages.common import read_json
from stages.device.measure import Measured
from stages.device.work import Work

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from frs.data import CocoDataset
    from frs.edge.latency import Artifact
    from frs.edge.predictor import Detections, ModelInfo
    from frs.evaluation import Row

SCHEMA = 1


def device_document(work: Work, found: Measured, gates: GatesConfig, environment: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured, judged by the run's gates, against torch's detections on the same images."""
    from frs.data import read_coco
    from frs.edge.telemetry import conditions
    from frs.evaluation import evaluate

    bundle, about = work.bundle, work.bundle.about
    data = read_coco(bundle.annotations, bundle.images)
    references = {model: read_json(bundle.reference(model)) for model in _models(bundle)}
    here = conditions()
    scored = {(model, "torch", "fp32"): rows for model, rows in references.items()}
    scored |= {(a.model, a.runtime, a.precision): rows for a, rows in found.rows.items()}
    accuracy = [{**_row(about, *key), **evaluate(bundle.annotations, rows).to_json()} for key, rows in scored.items()]
    return {
        "schema": SCHEMA,
        "kind": "device",
        "name": about.run,
        "device": _device(environment["machine"], here.device, here.jetpack),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bundle_sha256": work.bundle_sha256,
        "environment": {**environment, "conditions": asdict(here)},
        "classes": list(about.classes),
        "models": {model: dict(about.models[model]) for model in references},
        "data": {"val": _data(bundle, data)},
        "files": [
            {"model": m.model, "kind": m.precision, "file": m.path.partition("/")[2], "bytes": m.bytes, "sha256": m.sha256}
            for m in bundle.of_kind("onnx")
        ],
        "accuracy": accuracy,
        "profiles": found.profiles,
        "engines": found.engines,
        "gates": list(_judged(work, found, data, references, accuracy, gates)),
        "notes": found.notes,
    }  # fmt: skip


def _models(bundle: Bundle) -> list[str]:
    models = dict.fromkeys(str(member.model) for member in bundle.of_kind("onnx"))
    return sorted(models, key=lambda model: model != "teacher")


def _row(about: About, model: str, runtime: str, precision: str) -> dict[str, Any]:
    size = {"resize": "letterbox", "height": about.height, "width": about.width}
    return {"model": model, "runtime": runtime, "precision": precision, "decode": "graph", "input": size}


def _device(machine: Mapping[str, Any], board: str, jetpack: str | None) -> str:
    """A Jetson is one device; elsewhere the GPU is, where there is one."""
    return str(machine["gpu"]["name"]) if machine["gpu"] and jetpack is None else board


def _data(bundle: Bundle, data: CocoDataset) -> dict[str, Any]:
    """sha256: of the annotations and images, by which devices can be compared."""
    content = [member.sha256 for kind in ("annotations", "image") for member in bundle.of_kind(kind)]
    return {
        "images": len(data.images),
        "boxes": sum(len(image.boxes) for image in data.images),
        "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    }


def _judged(
    work: Work,
    found: Measured,
    data: CocoDataset,
    references: Mapping[str, Sequence[Row]],
    accuracy: Sequence[Mapping[str, Any]],
    gates: GatesConfig,
) -> Iterator[dict[str, Any]]:
    """A file that could not be scored has not passed: nothing was shown."""
    from stages.report.gates import judge

    about = work.bundle.about
    artifacts = [*found.rows, *(artifact for artifact in found.failures if artifact not in found.rows)]
    parity: dict[str, Mapping[str, Any]] = {}
    for artifact in artifacts:
        rows = found.rows.get(artifact)
        reference = references[artifact.model]
        parity[_label(artifact)] = _NOTHING if rows is None else _parity(data, about, reference, rows)
    yield from judge(gates.model_copy(update={"min_gain": None}), parity, {"accuracy": accuracy}, ())
    if gates.ap_drop is None:
        return
    ap = {(row["model"], row["runtime"], row["precision"]): row["AP"] for row in accuracy}
    for artifact in artifacts:
        torch, here = (
            ap.get((artifact.model, *key)) for key in (("torch", "fp32"), (artifact.runtime, artifact.precision))
        )
        drop = None if torch is None or here is None else round(torch - here, 4)
        passed = drop is not None and drop <= gates.ap_drop
        name, measured_on = f"ap_drop.{_label(artifact)}", 0 if here is None else len(data.images)
        yield {"name": name, "limit": gates.ap_drop, "value": drop, "passed": passed, "measured_on": measured_on}


_NOTHING: dict[str, Any] = {"boxes": 0, "unmatched": None, "score_p95": None, "box_p95": None}


def _label(artifact: Artifact) -> str:
    """As in the run's report; a TensorRT engine is another thing than its ONNX file."""
    label = f"{artifact.model}_{artifact.precision}"
    return label if artifact.runtime == "onnxruntime" else f"{label}.{artifact.runtime}"


def _parity(data: CocoDataset, about: About, reference: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    import numpy as np

    from frs.edge.predictor import ModelInfo
    from frs.export.parity import parity

    info = ModelInfo(about.height, about.width, about.classes, about.category_ids)
    torch, here = (_Replay(_detections(data, about, each), info) for each in (reference, rows))
    unseen = (np.zeros((1, 0), np.uint8) for _ in data.images)  # the detections are known
    return asdict(
        parity(
            torch,
            here,
            unseen,
            score_threshold=about.thresholds["score_threshold"],
            detections=int(about.thresholds["detections"]),
        )
    )


class _Replay:
    """A predictor that repeats, image by image, what was detected before."""

    def __init__(self, detected: Iterator[Detections], info: ModelInfo) -> None:
        self._detected = detected
        self.info = info

    def predict(self, images: npt.NDArray[np.uint8]) -> list[Detections]:
        return [next(self._detected) for _ in images]


def _detections(data: CocoDataset, about: About, rows: Sequence[Row]) -> Iterator[Detections]:
    """COCO's result rows as a predictor answers, for each image of the data set: boxes in pixels of the input, best first."""
    import numpy as np

    from frs.edge.predictor import Detections

    labels = {category: label for label, category in enumerate(about.category_ids)}
    of_image: dict[int, list[Row]] = {image.id: [] for image in data.images}
    for row in rows:
        of_image[row["image_id"]].append(row)
    for image in data.images:
        found = sorted(of_image[image.id], key=lambda row: -row["score"])
        scale = min(about.height / image.height, about.width / image.width)
        boxes = np.array([row["bbox"] for row in found], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield Detections(
            boxes * scale,
            np.array([row["score"] for row in found], dtype=np.float32),
            np.array([labels[row["category_id"]] for row in found], dtype=np.int32),
        )
