"""device.json: report.json's schema, as far as a device can fill it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from frs.edge.bundle import About, Bundle, Member
from pipeline.deployment import GatesConfig
from stages.artifacts import Deployed, OnnxFile
from stages.device.measure import Measured
from stages.device.reference import Reference
from stages.device.work import Work
from stages.parity import WORST
from stages.report.gates import judge

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.edge.measured import Artifact

SCHEMA = 1


def device_document(
    work: Work, reference: Reference, found: Measured, gates: GatesConfig, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """All that was measured, judged by the run's gates, against torch's detections on the same images."""
    from frs.edge.telemetry import conditions

    bundle, about = work.bundle, work.bundle.about
    here = conditions()
    accuracy = [
        *({**_row(about, model, "torch", "fp32"), **scored} for model, scored in reference.accuracy.items()),
        *({**_row(about, a.model, a.runtime, a.precision), **scored} for a, scored in found.accuracy.items()),
    ]
    parity = _parity(about, reference, found)
    return {
        "schema": SCHEMA,
        "kind": "device",
        "name": about.run,
        "device": _device(environment["machine"], here.device, here.jetpack),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bundle_sha256": work.bundle_sha256,
        "environment": {**environment, "conditions": asdict(here)},
        "classes": list(about.classes),
        "models": {model: dict(about.models[model]) for model in reference.accuracy},
        "data": {"val": _data(bundle, reference.data)},
        "files": [_file(member) for member in bundle.of_kind("onnx")],
        "accuracy": accuracy,
        "profiles": found.profiles,
        "engines": found.engines,
        "parity": parity,
        "gates": _judged(found, parity, accuracy, gates),
        "notes": found.notes,
    }


def _file(member: Member) -> dict[str, Any]:
    """kind: the precision, as in report.json."""
    name = member.path.rpartition("/")[2]
    return {
        "model": member.model,
        "kind": member.precision,
        "file": name,
        "bytes": member.bytes,
        "sha256": member.sha256,
    }


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


def _parity(about: About, reference: Reference, found: Measured) -> dict[str, dict[str, Any]]:
    """Label -> how the detections compare with torch's, and the images that disagree most; nothing of what was not scored."""
    from frs.evaluation.parity import by_image, compare, summarise, worst

    names = {image.id: image.file_name for image in reference.data.images}
    least, most = about.thresholds["score_threshold"], int(about.thresholds["detections"])
    torch = {model: by_image(rows, names, about.category_ids) for model, rows in reference.rows.items()}
    parity: dict[str, dict[str, Any]] = {}
    for artifact, rows in found.rows.items():
        here, there = by_image(rows, names, about.category_ids), torch[artifact.model]
        compared = {
            image: compare(there[image], here[image], score_threshold=least, detections=most) for image in names
        }
        measured = asdict(summarise(list(compared.values())))
        parity[_deployed(artifact).label] = {**measured, "worst": [names[image] for image in worst(compared, WORST)]}
    return parity


def _judged(
    found: Measured, parity: Mapping[str, Mapping[str, Any]], accuracy: list[dict[str, Any]], gates: GatesConfig
) -> list[dict[str, Any]]:
    """A file that could not be scored has not passed: nothing was shown."""
    artifacts = [_deployed(artifact) for artifact in dict.fromkeys([*found.rows, *found.failures])]
    shown = {each.label: parity.get(each.label, {"boxes": 0}) for each in artifacts}
    return judge(gates.model_copy(update={"min_gain": None}), shown, {"accuracy": accuracy}, artifacts)


def _deployed(artifact: Artifact) -> Deployed:
    return Deployed(OnnxFile(artifact.model, artifact.precision, "bundle"), artifact.runtime)
