"""The report's tables as plain text, from report.json alone: what report.md and report.html have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from stages.report.summary import COLUMNS, NONE, Report, accuracy, number, resized, rows

APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_ROW = ("model", "runtime", "precision", "decode")
_RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
PROVEN = {
    "failed": "not built",
    "planned": "planned: NVIDIA's compiler built it, nothing ran it",
    "deserialised": "deserialised: a GPU took it, nothing ran it",
    "executed": "executed on a GPU",
}


class Table(NamedTuple):
    """texts: how many of the first columns are words rather than figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def models_table(report: Report) -> Table:
    """Teacher, control and student: what each reaches and costs."""
    return Table(COLUMNS, rows(report))


def accuracy_table(report: Report) -> Table:
    """COCO AP of everything that was scored."""
    body = [(*(a[key] for key in _ROW), resized(a), *(number(a[key]) for key in APS)) for a in report["accuracy"]]
    return Table((*_ROW, "input", *APS), body, texts=5)


def class_table(report: Report) -> Table:
    """AP of each class, in torch with the reference decode."""
    models = list(report["models"])
    scored = [accuracy(report, model, "torch", "fp32", "reference")["per_class"] for model in models]
    body = [(name, *(number(by_class.get(name)) for by_class in scored)) for name in report["classes"]]
    return Table(("class", *models), body)


def latency_table(report: Report) -> Table:
    """Latency, throughput and memory of every exported file."""
    header = ("artifact", "p50 ms", "p90 ms", "p99 ms", "pre", "infer", "post", "images/s", "memory MB", "file MB")
    body = [
        (
            f"{profile['model']} {profile['precision']}",
            *(number(profile["latency_ms"][key]) for key in ("p50", "p90", "p99")),
            *(number(profile["stages_ms"][key]) for key in ("preprocess", "infer", "postprocess")),
            number(profile["throughput_ips"]),
            number(profile["peak_memory_mb"], 0),
            number(profile["artifact_mb"]),
        )
        for profile in report["profiles"]
    ]
    return Table(header, body)


def files_table(report: Report) -> Table:
    """Every file that a person takes away: size, how far it is proven, hash."""
    return Table(("file", "proven", "MB", "sha256"), [*_weights_and_graphs(report), *_engines(report)], texts=2)


def gates_table(report: Report) -> Table:
    """Every gate with its limit."""
    body = [
        (
            gate["name"],
            f"{gate['limit']:g}",
            NONE if gate["value"] is None else f"{gate['value']:.4g}",
            f"{gate['measured_on']:,} {'boxes' if gate['name'].startswith('parity.') else 'images'}",
            "yes" if gate["passed"] else "no",
        )
        for gate in report["gates"]
    ]
    return Table(("gate", "limit", "value", "measured on", "passed"), body)


def data_table(report: Report) -> Table:
    """Both splits, with the hash by which runs can be compared."""
    body = [(split, str(d["images"]), str(d["boxes"]), d["sha256"]) for split, d in report["data"].items()]
    return Table(("split", "images", "objects", "sha256"), body)


def environment(report: Report) -> Iterator[tuple[str, str]]:
    """Machine and packages, pair by pair."""
    machine: dict[str, Any] = report["environment"]["machine"]
    for key, value in machine.items():
        if isinstance(value, dict):
            value = ", ".join(str(part) for part in value.values())
        yield key.replace("_", " "), NONE if value is None else str(value)
    yield from report["environment"]["packages"].items()


def not_measured(report: Report) -> str:
    """What this machine could not tell of a profile, and why."""
    missing = report["profiles"][0]["missing"]
    return "; ".join(f"{key.removesuffix('_mj').replace('_', ' ')} ({why})" for key, why in missing.items())


def threads(report: Report) -> str:
    """Of the profiled files, in words."""
    count = report["profiles"][0]["threads"]
    return f"{count} thread{'' if count == 1 else 's'}"


def taught(report: Report) -> str:
    """The weights of the distillation's terms in words."""
    facts = report["distillation"]
    values = (f"{key} {facts[key]:.3g}" for key in ("alpha", "beta"))
    return f"{', '.join(values)} ({'measured on the first steps' if facts['chosen'] == 'auto' else 'given'})"


def _weights_and_graphs(report: Report) -> Iterable[tuple[str, ...]]:
    for file in report["files"]:
        kind = file["kind"]
        key = ("torch", "fp32", "reference") if kind == "weights" else ("onnxruntime", kind, "graph")
        ap = accuracy(report, file["model"], *key)["AP"]
        yield file["file"], f"AP {number(ap)} in {_RUNTIMES[key[0]]}", number(file["bytes"] / 1e6), file["sha256"]


def _engines(report: Report) -> Iterable[tuple[str, ...]]:
    graphs = {(file["model"], file["kind"]): PurePath(file["file"]) for file in report["files"]}
    for engine in report["engines"]:
        proven = PROVEN[engine["proven"]]
        if engine["builder"]:
            proven += f" ({engine['builder']} {engine['version']}, {engine['target']})"
        if engine["message"]:
            proven += f": {engine['message']}"
        plan = graphs[engine["model"], engine["precision"]].with_suffix(".plan")
        yield plan.name, proven, number(engine["size_mb"]), engine["plan_sha256"] or NONE
