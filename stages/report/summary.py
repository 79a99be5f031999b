"""The run's table and its verdict in words, from report.json alone; what `run` ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

Report = dict[str, Any]
NONE = "–"
COLUMNS = ("", "params", "AP", "AP50", "p50 ms", "p99 ms", "memory MB", "file MB")


def rows(report: Report) -> list[tuple[str, ...]]:
    """One row a model: AP in torch with the reference decode, cost of its ONNX file of `shown_precision`.

    The control is never exported: it is the student's network, so its cost is the student's.
    """
    table: list[tuple[str, ...]] = []
    for model, facts in report["models"].items():
        scored = accuracy(report, model, "torch", "fp32", "reference")
        spent = cost(report, "student" if model == "control" else model)
        latency = spent["latency_ms"]
        table.append(
            (
                model,
                f"{facts['params'] / 1e6:.2f} M",
                number(scored["AP"]),
                number(scored["AP50"]),
                number(latency["p50"]),
                number(latency["p99"]),
                number(spent["peak_memory_mb"], 0),
                number(spent["artifact_mb"]),
            )
        )
    return table


def sentence(report: Report) -> str:
    """The verdict on the distillation and how sure it is, in words."""
    claim, ground = verdict(report)
    return f"{claim} ({ground})." if ground else f"{claim}."


def verdict(report: Report) -> tuple[str, str]:
    """What the distillation did, and on what ground that is said; the latter is empty where there is no control."""
    distillation = report["distillation"]
    if distillation["verdict"] == "not shown":
        return "Whether distillation helped was not shown: the run has no control", ""
    low, high = distillation["gain_interval"]
    says = {
        "helped": "Distillation helped",
        "hurt": "Distillation hurt",
        "cannot tell": "Whether distillation helped cannot be told from this run",
    }
    return (
        f"{says[distillation['verdict']]}: {signed(distillation['gain_AP'])} AP against the control",
        f"95% interval {signed(low)} to {signed(high)}, paired over images; one seed",
    )


def table(report: Report, run_dir: Path) -> RenderableType:
    """What `run` ends with."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    costs = f"cost of the {shown_precision(report)} ONNX file"
    title = f"{escape(plain(report['name']))}: AP in torch ({measured_at(report)}), {costs}"
    drawn = Table(title=title, title_justify="left")
    for i, column in enumerate(COLUMNS):
        drawn.add_column(column, justify="left" if i == 0 else "right")
    for row in rows(report):
        drawn.add_row(*row)
    failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
    gates = f"Gates: {len(report['gates']) - len(failed)} of {len(report['gates'])} passed"
    return Group(
        drawn,
        Text(sentence(report)),
        Text(gates + (f"; failed: {plain(', '.join(failed))}" if failed else "")),
        Text(f"Report: {run_dir / 'report.html'}"),
    )


def accuracy(report: Report, *key: str) -> dict[str, Any]:
    """The row of a (model, runtime, precision, decode); of several resizes the one that the student was trained with."""
    return next(a for a in report["accuracy"] if (a["model"], a["runtime"], a["precision"], a["decode"]) == key)


def resized(row: dict[str, Any]) -> str:
    """How images were brought to the size at which a row of the accuracy table was scored, in words."""
    size = row["input"]
    if size["resize"] == "letterbox":
        return f"letterbox {size['width']} × {size['height']}"
    return f"shorter side {size['height']}, longer at most {size['width']}"


def measured_at(report: Report) -> str:
    """The same of the rows by which models are compared."""
    return resized(accuracy(report, "student", "torch", "fp32", "reference"))


def shown_precision(report: Report) -> str:
    """fp32 where it was exported, else what was."""
    precisions: list[str] = [profile["precision"] for profile in report["profiles"]]
    return "fp32" if "fp32" in precisions else precisions[0]


def cost(report: Report, model: str) -> dict[str, Any]:
    """The profile of a model's ONNX file of `shown_precision`."""
    wanted = (model, shown_precision(report))
    found: dict[str, Any] = next(p for p in report["profiles"] if (p["model"], p["precision"]) == wanted)
    return found


def number(value: float | None, digits: int = 1) -> str:
    """A figure for people, and a dash for one that was not measured."""
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def signed(value: float) -> str:
    """A difference of APs, with a second digit where one would show nothing."""
    return f"{value:+.{1 if abs(value) >= 0.1 else 2}f}".replace("-", "\u2212")


def plain(text: str) -> str:
    """Text out of a file, so that a terminal shows it and is not steered by it."""
    return text if text.isprintable() else ascii(text)[1:-1]
