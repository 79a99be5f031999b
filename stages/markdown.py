"""report.md, from report.json alone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from stages.summary import COLUMNS, NONE, Report, accuracy, number, rows, sentence, shown_precision

APS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PICTURES = (
    "Ground truth; what teacher and student find; and the teacher's feature richness, the highest over the pyramid's levels. "
    "The images are those with the most, the median and the fewest boxes, and so on evenly between."
)
PROVEN = (
    "`planned`: NVIDIA's compiler built it, nothing ran it; `deserialised`: loaded on a GPU; `executed`: run there."
)


def markdown(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    """The report for people; `pictures` are (path in the run folder, name of the image)."""
    parts = [
        f"# {safe(report['name'])}",
        f"**{sentence(report)}**",
        _grid(COLUMNS, rows(report)),
        f"AP in torch with the reference decode; latency, memory and size of the {shown_precision(report)} ONNX file on "
        f"{_hardware(report)}. The control is the student's network, so its cost is the student's.",
        *_accuracy(report),
        *_latency(report),
        *_engines(report),
        *_distillation(report),
        *_gates(report),
    ]
    if pictures:
        parts += ["## Validation pictures", PICTURES]
        parts += [f"![Panels of {safe(image)}]({file})\n\n{safe(image)}" for file, image in pictures]
    packages = ", ".join(f"{name} {version}" for name, version in report["environment"]["packages"].items())
    parts += ["## Environment", f"{_hardware(report)}; {packages}. Seed {report['seed']}; {report['created']}."]
    return "\n\n".join(parts) + "\n"


def safe(text: str) -> str:
    """Text from outside (class names, file names, messages) as Markdown that cannot become markup."""
    flat = " ".join(html.escape(text, quote=False).split())
    return "".join("\\" + c if c in "\\`*_[]|#!" else c for c in flat)


def _accuracy(report: Report) -> list[str]:
    body = [
        (*(a[key] for key in ("model", "runtime", "precision", "decode")), *(number(a[key]) for key in APS))
        for a in report["accuracy"]
    ]
    return [
        "## Accuracy of every artifact",
        _grid(("model", "runtime", "precision", "decode", *APS), body),
        f"COCO AP in percent on {report['accuracy'][0]['images']} validation images.",
        *(_per_class(report) if len(report["classes"]) > 1 else []),
    ]


def _per_class(report: Report) -> list[str]:
    models = list(report["models"])
    scored = [accuracy(report, model, "torch", "fp32", "reference")["per_class"] for model in models]
    body = [(safe(name), *(number(by_class.get(name)) for by_class in scored)) for name in report["classes"]]
    return ["### AP by class", _grid(("class", *models), body)]


def _latency(report: Report) -> list[str]:
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
    first = report["profiles"][0]
    return [
        "## Latency and memory",
        _grid(header, body),
        f"End to end from the decoded photograph to boxes in its pixels, batch {first['batch']}, "
        f"{first['latency_ms']['runs']} runs each, every file in a process of its own, the files in turn. Memory is "
        "the peak above the process before the file was opened.",
    ]


def _engines(report: Report) -> list[str]:
    body = [
        (
            engine["model"],
            engine["precision"],
            f"{engine['builder']} {engine['version']}" if engine["builder"] else NONE,
            engine["target"] or NONE,
            number(engine["size_mb"]),
            engine["proven"] + (f": {safe(engine['message'])}" if engine["message"] else ""),
        )
        for engine in report["engines"]
    ]
    return ["## Engines", _grid(("model", "precision", "builder", "target", "MB", "proven"), body), PROVEN]


def _distillation(report: Report) -> list[str]:
    facts = report["distillation"]
    weights = (f"{key} {facts[key]:.3g}" if facts[key] is not None else f"{key} never set" for key in ("alpha", "beta"))
    chosen = "measured on the first steps" if facts["chosen"] == "auto" else "given"
    return ["## Distillation", f"{facts['method'].upper()}, {', '.join(weights)} ({chosen})."]


def _gates(report: Report) -> list[str]:
    body = [
        (
            gate["name"],
            f"{gate['limit']:g}",
            number(gate["value"], 4),
            str(gate["measured_on"]),
            "yes" if gate["passed"] else "**no**",
        )
        for gate in report["gates"]
    ]
    return ["## Gates", _grid(("gate", "limit", "value", "measured on", "passed"), body)]


def _hardware(report: Report) -> str:
    machine = report["environment"]["machine"]
    return f"{safe(str(machine['cpu']))}, {report['profiles'][0]['threads']} threads"


def _grid(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
