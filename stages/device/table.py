"""A device's results in words and figures, from device.json alone: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.artifacts import Deployed, OnnxFile
from stages.report.gates import about
from stages.report.summary import NONE, Report, number, plain
from stages.report.tables import RUNTIMES, Table, cautions

if TYPE_CHECKING:
    from rich.console import RenderableType


class Line(NamedTuple):
    """One artifact. accuracy, profile: its rows, None where it was not scored or timed, the latter of the least batch."""

    model: str
    precision: str
    runtime: str
    accuracy: dict[str, Any] | None
    profile: dict[str, Any] | None

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision}"

    @property
    def p50(self) -> float | None:
        return None if self.profile is None else self.profile["latency_ms"]["p50"]

    @property
    def ap(self) -> float | None:
        return None if self.accuracy is None else self.accuracy["AP"]


def lines(report: Report) -> list[Line]:
    """Every artifact that was scored or timed here, in the order of the tables."""
    scored = {_key(row): row for row in report["accuracy"] if row["runtime"] != "torch"}
    timed: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in sorted(report["profiles"], key=lambda row: row["batch"]):
        timed.setdefault(_key(row), row)
    return [Line(*key, scored.get(key), timed.get(key)) for key in {**scored, **timed}]


def chosen(report: Report) -> tuple[Line | None, Line | None]:
    """The student's fastest artifact, of those that passed every gate if there is one, and the teacher's to hold it against:
    in fp32 in the same runtime where that is there, else its fastest."""
    timed = [line for line in lines(report) if line.profile and line.accuracy]
    students = sorted((line for line in timed if line.model == "student"), key=lambda line: line.p50 or 0.0)
    passed = [line for line in students if not failed_gates(report, line)]
    student = next(iter(passed or students), None)
    runtime = student.runtime if student else None
    teachers = [line for line in timed if line.model == "teacher"]
    teachers.sort(key=lambda line: (line.runtime != runtime, line.precision != "fp32", line.p50))
    return student, next(iter(teachers), None)


def failed_gates(report: Report, line: Line) -> list[str]:
    """Names of the gates over an artifact that it has not passed."""
    label = Deployed(OnnxFile(line.model, line.precision, "bundle"), line.runtime).label
    return [gate["name"] for gate in report["gates"] if not gate["passed"] and about(gate) == label]


def verdict(report: Report) -> tuple[str, str]:
    """What the student does here, and beside what."""
    student, teacher = chosen(report)
    if student is None:
        return "Nothing of the student was both scored and timed here", ""
    says = f"The student in {student.precision}: {number(student.p50)} ms, {number(student.ap)} AP"
    if teacher is None:
        return says, f"{RUNTIMES[student.runtime]}; nothing of the teacher was measured beside it"
    faster = (teacher.p50 or 0.0) / (student.p50 or 1.0)
    return says, (
        f"The teacher in {teacher.precision}: {number(teacher.p50)} ms, {number(teacher.ap)} AP, so that the student is "
        f"{number(faster)} times as fast. Medians in {RUNTIMES[student.runtime]}"
        + (f", the teacher's in {RUNTIMES[teacher.runtime]}." if teacher.runtime != student.runtime else ".")
    )


def device_table(report: Report, results: Path) -> RenderableType:
    """What `frs-pipeline device run` ends with."""
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    images, batches = report["data"]["val"]["images"], [line.profile["batch"] for line in lines(report) if line.profile]
    times = f", times at batch {min(batches)}" if batches else ""
    title = Text(plain(f"{report['name']} on {report['device']}: AP on {images} images{times}"))
    drawn = Drawn(title=title, title_justify="left")
    for place, name in enumerate(summary_table(report).header):
        drawn.add_column(name, justify="left" if place < 2 else "right")
    for row in summary_table(report).rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
    gates = f"Gates: {len(report['gates']) - len(failed)} of {len(report['gates'])} passed"
    says, beside = verdict(report)
    return Group(
        drawn,
        Text(plain(f"{says}. {beside}".rstrip())),
        *(Text(plain(f"Not to be quoted: {words}")) for words in cautions(report)),
        Text(gates + (f"; failed: {plain(', '.join(failed))}" if failed else "")),
        Text(f"Report: {results / 'device.html'}"),
    )


def summary_table(report: Report) -> Table:
    """An artifact a row: accuracy, time, memory, energy."""
    header = ("artifact", "runtime", "AP", "AP50", "p50 ms", "p99 ms", "images/s", "memory MB", "mJ", "file MB")
    body = []
    for line in lines(report):
        scored, timed = line.accuracy or {}, line.profile or {}
        latency = timed.get("latency_ms", {})
        body.append(
            (
                line.name,
                RUNTIMES[line.runtime],
                number(scored.get("AP")),
                number(scored.get("AP50")),
                *(number(latency.get(key), 2) for key in ("p50", "p99")),
                number(timed.get("throughput_ips")),
                number(timed.get("peak_memory_mb"), 0),
                number(timed.get("energy_mj")),
                number(timed.get("artifact_mb")),
            )
        )
    return Table(header, body, texts=2)


def conditions_of(report: Report) -> Iterator[tuple[str, str]]:
    """What the times hold for; what is not known, with the reason."""
    here = report["environment"]["conditions"]
    for key in ("device", "jetpack", "power_mode", "clocks"):
        yield key.replace("_", " "), here[key] or f"{NONE} ({here['missing'].get(key, 'not told')})"
    rails = dict.fromkeys(row["energy_rail"] for row in report["profiles"] if row["energy_rail"])
    if rails:
        yield "energy rail", ", ".join(rails)
    threads = dict.fromkeys(str(row["threads"]) for row in report["profiles"] if row["threads"])
    if threads:
        yield "threads of ONNX Runtime", ", ".join(threads)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["precision"], row["runtime"]
