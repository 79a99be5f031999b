"""The report's tables as plain text, from report.json alone: what report.md and report.html have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from stages.report.gates import is_floor
from stages.report.summary import COLUMNS, NONE, Report, accuracy, number, resized, rows

APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_ROW = ("model", "runtime", "precision", "decode")
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
PROVEN = {
    None: "no engine",
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
    """Latency of every file on every runtime, end to end and by its parts, and throughput."""
    header = (
        "artifact", "p50 ms", "95% interval", "p90 ms", "p95 ms", "p99 ms", "pre", "copies", "infer", "post", "GPU", "images/s"
    )  # fmt: skip
    body = []
    for name, profile in _profiles(report):
        latency, stages, gpu = profile["latency_ms"], profile["stages_ms"], profile["gpu_ms"]
        copies = None if stages["copy_in"] is None else stages["copy_in"] + stages["copy_out"]
        body.append(
            (
                name,
                number(latency["p50"]),
                " to ".join(number(end) for end in latency["p50_interval"]),
                *(number(latency[key]) for key in ("p90", "p95", "p99")),
                *(number(part) for part in (stages["preprocess"], copies, stages["infer"], stages["postprocess"])),
                number(gpu and gpu["p50"]),
                number(profile["throughput_ips"]),
            )
        )
    return Table(header, body)


def memory_table(report: Report) -> Table:
    """Memory, start, energy and what went on beside the measurement, of the same files."""
    header = (
        "artifact", "first answer ms", "memory MB", "GPU MB", "file MB", "mJ a call", "°C at start", "°C at end", "other load %"
    )  # fmt: skip
    body = []
    for name, profile in _profiles(report):
        temperature = profile["temperature_c"] or {"start": None, "end": None}
        body.append(
            (
                name,
                number(profile["cold_start_ms"], 0),
                number(profile["peak_memory_mb"], 0),
                number(profile["device_memory_mb"], 0),
                number(profile["artifact_mb"]),
                number(profile["energy_mj"]),
                number(temperature["start"], 0),
                number(temperature["end"], 0),
                number(profile["other_load"], 0),
            )
        )
    return Table(header, body)


def cautions(report: Report) -> list[str]:
    """Why latencies should not be quoted, each once, with the artifacts that it is about."""
    about: dict[str, list[str]] = {}
    for name, profile in _profiles(report):
        for warning in profile["warnings"]:
            about.setdefault(warning, []).append(name)
    return [f"{warning}{_of(names, report, ' ({})')}" for warning, names in about.items()]


def files_table(report: Report) -> Table:
    """Every file that a person takes away: size, how far it is proven, hash."""
    return Table(("file", "proven", "MB", "sha256"), [*_weights_and_graphs(report), *_engines(report)], texts=2)


def gates_table(report: Report) -> Table:
    """Every gate with its limit."""
    body = [
        (
            gate["name"],
            f"{'≥' if is_floor(gate) else '≤'} {gate['limit']:g}",
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
    """What this machine could not tell of which profile, and why."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for name, profile in _profiles(report):
        for key, why in profile["missing"].items():
            lacking.setdefault((key, why), []).append(name)
    reasons: dict[str, list[str]] = {}
    for (key, why), names in lacking.items():
        reasons.setdefault(f"({why})", []).append(_called(key) + _of(names, report, " of {}"))
    return "; ".join(f"{', '.join(keys)} {why}" for why, keys in reasons.items())


def circumstances(report: Report) -> str:
    """What the machine was set to and did while it was timed, as far as it tells; empty where it tells nothing."""
    profiles = report["profiles"]
    told = {
        key: ", ".join(dict.fromkeys(str(profile[key]) for profile in profiles if profile[key] is not None))
        for key in ("power_mode", "clocks", "energy_rail")
    }
    words = {"power_mode": "power mode {}", "clocks": "clocks {}", "energy_rail": "energy measured at {}"}
    said = [words[key].format(value) for key, value in told.items() if value]
    throttled = [profile["throttled"] for profile in profiles if profile["throttled"] is not None]
    if throttled:
        said.append("throttled" if any(throttled) else "not throttled")
    text = ", ".join(said)
    return text[:1].upper() + text[1:]


def timed(report: Report) -> str:
    """How much of each file's work was timed, in words."""
    latencies = [profile["latency_ms"] for profile in report["profiles"]]
    runs, seconds = (min(latency[key] for latency in latencies) for key in ("runs", "seconds"))
    return f"at least {runs} runs and {number(seconds)} s of each"


def threads(report: Report) -> str:
    """Of the profiled files on the CPU, in words."""
    count = next((profile["threads"] for profile in report["profiles"] if profile["threads"] is not None), None)
    if count is None:
        return "on its GPU"
    return f"{count} thread{'' if count == 1 else 's'}"


def taught(report: Report) -> str:
    """The weights of the distillation's terms in words."""
    facts = report["distillation"]
    values = (f"{key} {facts[key]:.3g}" for key in ("alpha", "beta"))
    return f"{', '.join(values)} ({'measured on the first steps' if facts['chosen'] == 'auto' else 'given'})"


def _profiles(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every profile with its name: model and precision, the runtime and the batch where there are several."""
    profiles: list[dict[str, Any]] = report["profiles"]
    several = {key: len({profile[key] for profile in profiles}) > 1 for key in ("runtime", "batch")}
    for profile in profiles:
        runtime = f" {RUNTIMES[profile['runtime']]}" if several["runtime"] else ""
        batch = f", batch {profile['batch']}" if several["batch"] else ""
        yield f"{profile['model']} {profile['precision']}{runtime}{batch}", profile


def _of(names: Sequence[str], report: Report, words: str) -> str:
    """Which profiles something is about; of all of them nothing need be said."""
    return "" if len(names) == len(report["profiles"]) else words.format(", ".join(names))


def _called(key: str) -> str:
    """A figure's name in prose, as the tables call it."""
    named = {"gpu_ms": "GPU time", "device_memory_mb": "GPU memory", "peak_memory_mb": "memory", "energy_mj": "energy"}
    bare = re.sub(r"_(mj|mb|ms|w|c)$", "", key.removeprefix("stages_ms."))
    return named.get(key) or bare.replace("_", " ")


def _weights_and_graphs(report: Report) -> Iterable[tuple[str, ...]]:
    for file in report["files"]:
        kind = file["kind"]
        key = ("torch", "fp32", "reference") if kind == "weights" else ("onnxruntime", kind, "graph")
        ap = accuracy(report, file["model"], *key)["AP"]
        yield file["file"], f"AP {number(ap)} in {RUNTIMES[key[0]]}", number(file["bytes"] / 1e6), file["sha256"]


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
