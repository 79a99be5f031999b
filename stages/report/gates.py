"""The gates: limits of the configuration held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.deployment import GatesConfig
from stages.artifacts import OnnxFile

Gate = dict[str, Any]


def judge(
    gates: GatesConfig,
    parity: Mapping[str, Mapping[str, Any]],
    scored: Mapping[str, Any],
    files: Iterable[OnnxFile],
) -> list[Gate]:
    """Every gate that has a limit, as the report's `gates` rows.

    A gate that compared fewer than `parity_min_boxes` boxes has not passed: nothing was shown.
    """
    rows = list(_parity(gates, parity))
    if gates.ap_drop is not None:
        rows += [_ap_drop(gates.ap_drop, scored["accuracy"], file) for file in files]
    if gates.min_gain is not None:
        gain = scored["gain"]["difference"]
        rows.append(_gate("gain", gates.min_gain, gain, gain >= gates.min_gain, scored["gain"]["images"]))
    return rows


def failures(rows: Iterable[Gate]) -> list[str]:
    """A sentence for every gate that was not passed."""
    return [f"{row['name']}: {_reason(row)}" for row in rows if not row["passed"]]


def _reason(row: Gate) -> str:
    if row["value"] is None:
        return f"not measured, only {row['measured_on']} boxes could be compared"
    return f"{row['value']:.4g}, the limit is {row['limit']:.4g} (measured on {row['measured_on']})"


def _gate(name: str, limit: float, value: float | None, passed: bool, measured_on: int) -> Gate:
    return {"name": name, "limit": limit, "value": value, "passed": passed, "measured_on": measured_on}


def _parity(gates: GatesConfig, parity: Mapping[str, Mapping[str, Any]]) -> Iterator[Gate]:
    limits = {
        "unmatched": gates.parity_unmatched,
        "score_p95": gates.parity_score,
        "box_p95": gates.parity_box,
    }
    for label, measured in parity.items():
        enough = measured["boxes"] >= gates.parity_min_boxes
        for key, limit in limits.items():
            if limit is not None:
                value = measured[key] if enough else None
                passed = value is not None and value <= limit
                yield _gate(f"parity.{label}.{key}", limit, value, passed, measured["boxes"])


def _ap_drop(limit: float, accuracy: list[dict[str, Any]], file: OnnxFile) -> Gate:
    """What the exported file loses against the same graph in torch, in AP."""
    torch = next(
        row for row in accuracy if (row["model"], row["runtime"], row["decode"]) == (file.model, "torch", "graph")
    )
    wanted = (file.model, "onnxruntime", file.precision)
    scored = next(row for row in accuracy if (row["model"], row["runtime"], row["precision"]) == wanted)
    drop = round(torch["AP"] - scored["AP"], 4)
    return _gate(f"ap_drop.{file.label}", limit, drop, drop <= limit, scored["images"])
