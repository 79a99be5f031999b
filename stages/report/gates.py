"""The gates: limits of the configuration held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.deployment import GatesConfig
from stages.artifacts import Deployed
from stages.report.summary import plain

Gate = dict[str, Any]


def judge(
    gates: GatesConfig,
    parity: Mapping[str, Mapping[str, Any]],
    scored: Mapping[str, Any],
    artifacts: Iterable[Deployed],
    quantization: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Gate]:
    """Every gate that has a limit, as the report's `gates` rows.

    parity: by label, as frs.evaluation.parity has it. scored: `accuracy` and `gain`. quantization: by label, `drop` and
    `holdout`. A gate that compared fewer than `parity_min_boxes` boxes has not passed: nothing was shown.
    """
    rows = list(_parity(gates, parity))
    rows += [row for each in artifacts for row in _ap_drop(gates, scored["accuracy"], each)]
    if gates.int8_max_drop is not None:
        rows += [_held_out(gates.int8_max_drop, label, made) for label, made in (quantization or {}).items()]
    if gates.min_gain is not None:
        gain = scored["gain"]["difference"]
        rows.append(_gate("gain", gates.min_gain, gain, gain >= gates.min_gain, scored["gain"]["images"]))
    return rows


def failures(rows: Iterable[Gate], worst: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """A sentence for every gate that was not passed; the first about an artifact names its images.

    worst: label -> names of the images that disagree most.
    """
    images = dict(worst or {})
    return [f"{row['name']}: {_reason(row)}{_worst(images.pop(about(row), ()))}" for row in rows if not row["passed"]]


def worst_images(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label -> names of the images that disagree most with torch, as `failures` takes them."""
    return {label: list(measured["worst"]) for label, measured in report["parity"].items()}


def about(row: Gate) -> str:
    """The label of the artifact that a gate is about; of `gain`, nothing."""
    name: str = row["name"]
    kind, _, rest = name.partition(".")
    return rest.rpartition(".")[0] if kind == "parity" else rest


def is_floor(row: Gate) -> bool:
    """Whether the limit is the least that the value may be, not the most."""
    return row["name"] == "gain" or ".iou_" in row["name"]


def ap_limit(gates: GatesConfig, label: str) -> float | None:
    """The AP that an artifact may lose against torch on the same images."""
    return gates.int8_ap_drop if _is_int8(label) else gates.ap_drop


def _is_int8(label: str) -> bool:
    return label.partition("_")[2].startswith("int8")


def _worst(names: Sequence[str]) -> str:
    return f"; worst in {', '.join(map(plain, names))}" if names else ""


def _reason(row: Gate) -> str:
    if row["value"] is None:
        what = "boxes" if row["name"].startswith("parity.") else "images"
        return f"not measured, only {row['measured_on']} {what} could be compared"
    least = "at least " if is_floor(row) else ""
    return f"{row['value']:.4g}, the limit is {least}{row['limit']:.4g} (measured on {row['measured_on']})"


def _gate(name: str, limit: float, value: float | None, passed: bool, measured_on: int) -> Gate:
    return {"name": name, "limit": limit, "value": value, "passed": passed, "measured_on": measured_on}


def _parity(gates: GatesConfig, parity: Mapping[str, Mapping[str, Any]]) -> Iterator[Gate]:
    floating = {"unmatched": gates.parity_unmatched, "score_p95": gates.parity_score, "iou_p5": gates.parity_iou}
    int8 = {"unmatched": gates.int8_unmatched, "score_p95": gates.int8_score, "iou_p25": gates.int8_iou}
    for label, measured in parity.items():
        for key, limit in (int8 if _is_int8(label) else floating).items():
            if limit is not None:
                yield _compared(f"parity.{label}.{key}", limit, key, measured, gates.parity_min_boxes)


def _compared(name: str, limit: float, key: str, measured: Mapping[str, Any], least: int) -> Gate:
    boxes = measured["boxes"]
    value = measured[key] if boxes >= least else None
    if value is None and boxes >= least:
        boxes = 0  # there were enough, and not one of them had a counterpart
    passed = value is not None and (value >= limit if key.startswith("iou_") else value <= limit)
    return _gate(name, limit, value, passed, boxes)


def _ap_drop(gates: GatesConfig, accuracy: list[dict[str, Any]], artifact: Deployed) -> Iterator[Gate]:
    """What an artifact loses against the same graph in torch, in AP."""
    limit = ap_limit(gates, artifact.label)
    if limit is None:
        return
    model, precision = artifact.file.model, artifact.file.precision
    ap = {(row["model"], row["runtime"], row["precision"]): row["AP"] for row in accuracy if row["decode"] == "graph"}
    torch, here = ap.get((model, "torch", "fp32")), ap.get((model, artifact.runtime, precision))
    images = next((row["images"] for row in accuracy), 0)
    drop = None if torch is None or here is None else round(torch - here, 4)
    passed, measured_on = drop is not None and drop <= limit, 0 if drop is None else images
    yield _gate(f"ap_drop.{artifact.label}", limit, drop, passed, measured_on)


def _held_out(limit: float, label: str, made: Mapping[str, Any]) -> Gate:
    """What an int8 file loses against the file that it was made of, on training images that it was not calibrated on."""
    drop = made["drop"]
    return _gate(f"int8_drop.{label}", limit, drop, drop is not None and drop <= limit, made["holdout"])
