"""report.md, from report.json and the pictures."""

from __future__ import annotations

import html
import re

from stages.report.gates import failures, worst_images
from stages.report.pictures import Picture, Pictures
from stages.report.shipped import artifacts_table, int8_table, kept_layers, sensitivity_table
from stages.report.summary import Report, measured_at, sentence, shown_precision
from stages.report.tables import (
    Table,
    accuracy_table,
    cautions,
    circumstances,
    class_table,
    data_table,
    environment,
    files_table,
    gates_table,
    latency_table,
    memory_table,
    models_table,
    not_measured,
    taught,
    threads,
    timed,
)

_CONTROL = " The control is the student's network, so its cost is the student's."


def markdown(report: Report, pictures: Pictures) -> str:
    """The report for people, where HTML cannot be opened; report.html has the curves besides."""
    failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
    parts = [
        f"# {safe(report['name'])}",
        f"**{sentence(report)}**",
        *([f"**Gates failed: {safe(', '.join(failed))}**"] if failed else []),
        _grid(models_table(report)),
        f"AP in percent in torch with exact NMS, {measured_at(report)}; latency, memory and size of the "
        f"{shown_precision(report)} ONNX file on {_hardware(report)}.{_CONTROL if 'control' in report['models'] else ''}",
        "## Every artifact",
        _grid(artifacts_table(report)),
        "AP lost: against torch with the same NMS inside. Against torch on the same pixels: boxes without a counterpart, "
        "weighted by their scores; the difference of scores that 95 of 100 pairs keep; the overlap that three of four keep. "
        "A dash: nothing here could run it, so nothing is known.",
        *_int8(report),
        *_gates(report, pictures),
        "## Accuracy",
        _grid(accuracy_table(report)),
        f"COCO AP in percent on {report['data']['val']['images']} validation images.",
        *(["### AP by class", _grid(class_table(report))] if len(report["classes"]) > 1 else []),
        "## Latency and memory",
        _grid(latency_table(report)),
        *_cautions(report),
        _grid(memory_table(report)),
        _timed(report),
        "## Files",
        _grid(files_table(report)),
        "## Distillation",
        f"{report['distillation']['method'].upper()}, {taught(report)}.",
        *_pictures(pictures),
        "## How to make it again",
        _literal(report["command"]),
        f"Seed {report['seed']}, commit {report['commit'] or 'unknown'}, {report['created']}; `config.yaml` beside this file "
        "is the configuration with every default.",
        _grid(data_table(report)),
        _grid(Table(("", ""), list(environment(report)))),
    ]
    return "\n\n".join(parts) + "\n"


def safe(text: str) -> str:
    """Text from outside (class names, file names, messages) as Markdown that cannot become markup."""
    flat = " ".join(html.escape(text, quote=False).split())
    marked = "".join("\\" + c if c in "\\`*_[]|#!" else c for c in flat)
    return marked.replace("://", r"\://").replace("www.", r"www\.")  # some readers make links of these by themselves


def _literal(text: str) -> str:
    """Every character as it is: a block whose fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _timed(report: Report) -> str:
    found = f"{safe(text)}. " if (text := circumstances(report)) else ""
    return (
        f"End to end from the decoded photograph to boxes in its pixels, batch {report['profiles'][0]['batch']}, "
        f"{timed(report)}, every file in a process of its own, the files in turn. First answer: from opening the file in a "
        "fresh process. Memory is the peak above the process before the file was opened. "
        f"Energy is above the machine's idle power. {found}Not measured: {safe(not_measured(report)) or 'nothing'}."
    )


def _int8(report: Report) -> list[str]:
    if not report["quantization"]:
        return []
    return [
        "### What int8 costs",
        _grid(int8_table(report)),
        "On training images that were not calibrated on: by them, and by no validation image, it was decided which layers stay "
        "in higher precision. Validation AP is not what was tuned on. With one group of layers quantised at a time:",
        _grid(sensitivity_table(report)),
        *(
            f"{safe(label)} keeps {safe(', '.join(layers))} in higher precision."
            for label, layers in kept_layers(report)
        ),
    ]


def _gates(report: Report, pictures: Pictures) -> list[str]:
    if not report["gates"]:
        return []
    failed = failures(report["gates"], worst_images(report))
    shown = [picture for of_one in pictures.disagreements.values() for picture in of_one]
    return [
        "## Gates",
        *(["\n".join(f"- {safe(sentence)}" for sentence in failed)] if failed else []),
        *(["Torch's boxes solid, the file's dashed:"] if shown else []),
        *(_picture(picture) for picture in shown),
        _grid(gates_table(report)),
    ]


def _cautions(report: Report) -> list[str]:
    found = cautions(report)
    if not found:
        return []
    return ["**These latencies should not be quoted:**\n\n" + "\n".join(f"- {safe(caution)}" for caution in found)]


def _pictures(pictures: Pictures) -> list[str]:
    parts: list[str] = []
    for title, shown in (
        ("Where the student gained most on its control", pictures.wins),
        ("Where it lost most", pictures.losses),
        ("Where the teacher's features are rich", pictures.maps),
    ):
        if shown:
            parts += [f"## {title}", *(_picture(picture) for picture in shown)]
    return parts


def _picture(picture: Picture) -> str:
    caption = f": {picture.caption}" if picture.caption else ""
    return f"![Panels of {safe(picture.image)}]({picture.file})\n\n{safe(picture.image)}{caption}"


def _hardware(report: Report) -> str:
    machine = report["environment"]["machine"]
    return f"{safe(str(machine['cpu']))}, {threads(report)}"


def _grid(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *([safe(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
