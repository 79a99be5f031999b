"""device.json: report.json's schema, as far as a device can fill it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from frs.edge.bundle import About, Bundle, Member
from pipeline.deployment import GatesConfig
from stages.device.measure import Measured
from stages.device.reference import Reference
from stages.device.work import Work

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.edge.measured import Artifact
    from frs.evaluation import Row

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
        "gates": list(_judged(about, reference, found, accuracy, gates)),
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


def _judged(
    about: About,
    reference: Reference,
    found: Measured,
    accuracy: Sequence[Mapping[str, Any]],
    gates: GatesConfig,
) -> Iterator[dict[str, Any]]:
    """A file that could not be scored has not passed: nothing was shown."""
    from stages.report.gates import judge

    artifacts = [*found.rows, *(artifact for artifact in found.failures if artifact not in found.rows)]
    parity = {
        _label(artifact): _parity(about, reference, artifact, found.rows[artifact])
        if artifact in found.rows
        else _NOTHING
        for artifact in artifacts
    }
    yield from judge(gates.model_copy(update={"min_gain": None}), parity, {"accuracy": accuracy}, ())
    if gates.ap_drop is None:
        return
    for artifact in artifacts:
        torch, here = reference.accuracy[artifact.model]["AP"], found.accuracy.get(artifact, {}).get("AP")
        drop = None if torch is None or here is None else round(torch - here, 4)
        yield {
            "name": f"ap_drop.{_label(artifact)}",
            "limit": gates.ap_drop,
            "value": drop,
            "passed": drop is not None and drop <= gates.ap_drop,
            "measured_on": 0 if here is None else len(reference.data.images),
        }


_NOTHING: dict[str, Any] = {"boxes": 0, "unmatched": None, "score_p95": None, "box_p95": None}


def _label(artifact: Artifact) -> str:
    """As in the run's report; a TensorRT engine is another thing than its ONNX file."""
    label = f"{artifact.model}_{artifact.precision}"
    return label if artifact.runtime == "onnxruntime" else f"{label}.{artifact.runtime}"


def _parity(about: About, reference: Reference, artifact: Artifact, rows: Sequence[Row]) -> dict[str, Any]:
    from frs.evaluation.parity import by_image, compare, summarise

    images = [image.id for image in reference.data.images]
    torch, here = (by_image(each, images, about.category_ids) for each in (reference.rows[artifact.model], rows))
    least, most = about.thresholds["score_threshold"], int(about.thresholds["detections"])
    compared = [compare(torch[i], here[i], score_threshold=least, detections=most) for i in images]
    return asdict(summarise(compared))
