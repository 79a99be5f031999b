"""The report's tables of what could be shipped: every artifact at a glance, and what int8 costs; from report.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from stages.report.gates import about
from stages.report.summary import NONE, Report, number
from stages.report.tables import RUNTIMES, Table

_STATES = {
    None: "no engine",
    "failed": "not built",
    "planned": "built, not run",
    "deserialised": "loaded, not run",
    "executed": "run",
}
Row = dict[str, Any]


def artifacts_table(report: Report) -> Table:
    """A row for each file and each engine: accuracy, parity with torch, latency, memory and size; a gap where none ran it."""
    header = (
        "artifact", "runtime", "AP", "AP lost", "unmatched %", "score", "IoU", "p50 ms", "memory MB", "file MB", "gates"
    )  # fmt: skip
    scored = {(row["model"], row["runtime"], row["precision"]): row for row in reversed(report["accuracy"])}
    timed = {(row["model"], row["runtime"], row["precision"]): row for row in reversed(report["profiles"])}
    torch = {
        row["model"]: row["AP"] for row in report["accuracy"] if row["decode"] == "graph" and row["runtime"] == "torch"
    }
    body = []
    for name, key, label, megabytes in _artifacts(report):
        ap, profile = scored.get(key, {}).get("AP"), timed.get(key)
        measured = report["parity"].get(label, dict.fromkeys(("unmatched", "score_p95", "iou_p25")))
        body.append(
            (
                name,
                RUNTIMES[key[1]],
                number(ap),
                number(None if ap is None else torch[key[0]] - ap, 2),
                number(None if measured["unmatched"] is None else 100 * measured["unmatched"]),
                number(measured["score_p95"], 3),
                number(measured["iou_p25"], 3),
                number(profile and profile["latency_ms"]["p50"]),
                number(profile and profile["peak_memory_mb"], 0),
                number(megabytes),
                _passed(report, label) or _engine(report, key),
            )
        )
    return Table(header, body, texts=2)


def int8_table(report: Report) -> Table:
    """What each int8 file loses on held-out training images, and how many of its layers it does not quantise."""
    header = ("file", "AP lost, held out", "of at most", "images", "layers", "in higher precision", "by request")
    body = [
        (
            label.replace("_", " ", 1),
            number(made["drop"], 2),
            number(made["limit"], 2),
            str(made["holdout"]),
            str(made["layers"]),
            str(len(made["kept"])),
            str(len(made["asked_for"])),
        )
        for label, made in report["quantization"].items()
    ]
    return Table(header, body)


def sensitivity_table(report: Report) -> Table:
    """What each group of layers costs when it alone is quantised, and how many of its layers each file keeps as they were."""
    files = report["quantization"]
    measured = [label for label, made in files.items() if made["sensitivity"]["measured_on"] == label]
    header = [
        "layers", "", *(_costs(files[label], label) for label in measured), *(f"kept, {_short(label)}" for label in files)
    ]  # fmt: skip
    names = dict.fromkeys(
        (label.partition("_")[0], group["name"]) for label in files for group in files[label]["sensitivity"]["groups"]
    )
    body = []
    for model, name in names:
        groups = {label: _group(made, name) for label, made in files.items() if label.startswith(f"{model}_")}
        count = next(group["layers"] for group in groups.values() if group)
        body.append(
            (
                name if len({model for model, _ in names}) == 1 else f"{model} {name}",
                str(count),
                *(_cost(groups.get(label)) for label in measured),
                *(number(group["kept"], 0) if (group := groups.get(label)) else NONE for label in files),
            )
        )
    return Table(header, body)


def kept_layers(report: Report) -> list[tuple[str, list[str]]]:
    """Of each file that has any the layers that it keeps in higher precision."""
    return [
        (label.replace("_", " ", 1), made["kept"]) for label, made in report["quantization"].items() if made["kept"]
    ]


def _artifacts(report: Report) -> Iterator[tuple[str, tuple[str, str, str], str, float | None]]:
    """Name, (model, runtime, precision), label in gates and parity, size: the files, then their engines."""
    files = {(file["model"], file["kind"]): file for file in report["files"] if file["kind"] != "weights"}
    for (model, kind), file in files.items():
        yield file["file"], (model, "onnxruntime", kind), f"{model}_{kind}", file["bytes"] / 1e6
    for engine in report["engines"]:
        model, kind = engine["model"], engine["precision"]
        name = PurePath(files[model, kind]["file"]).with_suffix(".plan").name
        yield name, (model, "tensorrt", kind), f"{model}_{kind}.tensorrt", engine["size_mb"]


def _passed(report: Report, label: str) -> str:
    """How many of the gates about it were passed; nothing where there are none."""
    judged = [row["passed"] for row in report["gates"] if about(row) == label]
    return f"{sum(judged)} of {len(judged)}" if judged else ""


def _engine(report: Report, key: tuple[str, str, str]) -> str:
    states = [e["proven"] for e in report["engines"] if (e["model"], "tensorrt", e["precision"]) == key]
    return _STATES[states[0]] if states else NONE


def _short(label: str) -> str:
    return label.partition("_")[2]


def _costs(made: Row, label: str) -> str:
    return f"{'AP lost' if made['sensitivity']['by'] == 'AP' else 'SQNR dB'}, {_short(label)}"


def _cost(group: Row | None) -> str:
    if group is None:
        return NONE
    return number(group["sqnr_db"]) if group["drop"] is None else number(group["drop"], 2)


def _group(made: Row, name: str) -> Row | None:
    return next((group for group in made["sensitivity"]["groups"] if group["name"] == name), None)
