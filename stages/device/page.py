"""device.html: one file that opens from disk, asks nothing of any network and runs no script."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stages.device import table
from stages.device.measure import Measured
from stages.device.work import Work
from stages.report import tables
from stages.report.gates import failures, worst_images
from stages.report.page import templates
from stages.report.pictures import COLOURS, TRUTH, Picture, panel, resized, spread
from stages.report.summary import NONE, Report, number

if TYPE_CHECKING:
    from frs.evaluation import Row

PICTURES = 4
_TABLES = ("accuracy", "latency", "memory", "gates", "data")


def device_page(report: Report, work: Work, found: Measured) -> str:
    """The report for people. The template escapes everything."""
    student, _ = table.chosen(report)
    shown = [rows for a, rows in found.rows.items() if student and (a.model, a.precision, a.runtime) == student[:3]]
    pictures, threshold = _pictures(work, shown[0]) if shown else ((), None)
    return (
        templates("stages.device")
        .get_template("device.html")
        .render(
            report=report,
            verdict=table.verdict(report),
            facts=_facts(report),
            failures=failures(report["gates"], worst_images(report)),
            cautions=tables.cautions(report),
            timed=tables.timed(report) if report["profiles"] else "",
            bars=_bars(report),
            student=student,
            pictures=pictures,
            threshold=threshold,
            tables={
                "summary": table.summary_table(report),
                **{name: getattr(tables, f"{name}_table")(report) for name in _TABLES},
                "engines": _engines(report),
            },
            conditions=list(table.conditions_of(report)),
            not_measured=tables.not_measured(report),
            environment=list(tables.environment(report)),
            colours={name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in COLOURS.items()},
        )
    )


def _facts(report: Report) -> list[tuple[str, str, str]]:
    """Of the student's artifact that the verdict is about: (label, figure, comparison)."""
    student, teacher = table.chosen(report)
    if student is None or student.profile is None:
        return []
    beside = teacher.profile if teacher else None
    torch = next(row["AP"] for row in report["accuracy"] if (row["model"], row["runtime"]) == ("student", "torch"))
    p50, p99 = (student.profile["latency_ms"][key] for key in ("p50", "p99"))
    energy, memory = student.profile["energy_mj"], student.profile["peak_memory_mb"]
    facts = [
        ("latency, p50", f"{number(p50)} ms", f"p99 {number(p99)} ms"),
        ("AP of the file", number(student.ap), f"in torch {number(torch)}"),
        ("images a second", number(student.profile["throughput_ips"]), f"batch {student.profile['batch']}"),
        (
            "peak memory",
            _with_unit(memory, "MB"),
            f"teacher {_with_unit(beside['peak_memory_mb'] if beside else None, 'MB')}",
        ),
    ]
    if energy is not None:
        facts.append(("energy a call", _with_unit(energy, "mJ"), student.profile["energy_rail"]))
    return facts


def _with_unit(value: float | None, unit: str) -> str:
    return number(value, 0 if (value or 0) >= 10 else 1) + (f" {unit}" if value is not None else "")


def _bars(report: Report) -> list[dict[str, Any]]:
    """A row a timed artifact, the fastest first: widths in percent of the slowest p99, and of the highest AP."""
    timed = sorted((line for line in table.lines(report) if line.profile), key=lambda line: line.p50 or 0.0)
    slowest = max((line.profile["latency_ms"]["p99"] for line in timed if line.profile), default=1.0)
    best = max((line.ap or 0.0 for line in timed), default=0.0) or 1.0
    return [
        {
            "line": line,
            "runtime": tables.RUNTIMES[line.runtime],
            "p50": 100 * line.profile["latency_ms"]["p50"] / slowest,
            "p99": 100 * line.profile["latency_ms"]["p99"] / slowest,
            "ap": 100 * (line.ap or 0.0) / best,
            "failed": table.failed_gates(report, line),
        }
        for line in timed
        if line.profile
    ]


def _engines(report: Report) -> tables.Table:
    header = ("engine", "built by", "for", "proven", "seconds", "MB")
    files = {(file["model"], file["kind"]): file["file"] for file in report["files"]}
    body = [
        (
            PurePath(files[row["model"], row["precision"]]).with_suffix(".plan").name,
            f"{row['builder'] or 'nothing'} {row['version'] or ''}".rstrip(),
            row["target"] or NONE,
            tables.PROVEN[row["proven"]] + (f": {row['message']}" if row["message"] else ""),
            number(row["seconds"]),
            number(row["size_mb"]),
        )
        for row in report["engines"]
    ]
    return tables.Table(header, body, texts=4)


def _pictures(work: Work, rows: list[Row]) -> tuple[tuple[Picture, ...], float]:
    """Annotations beside what was found, from the image with most objects to that with fewest; and the lowest score drawn."""
    from frs.data import read_coco
    from frs.edge.draw import draw_boxes
    from frs.evaluation.images import best_threshold, match_images

    data = read_coco(work.bundle.annotations, work.bundle.images)
    matches = match_images(work.bundle.annotations, rows)
    threshold = best_threshold(matches)
    drawn = []
    for image in spread(data.images, PICTURES):
        canvas, factor = resized(data.load(image))
        truth = image.boxes[~image.crowd]
        panels = (
            (f"annotations: {len(truth)}", draw_boxes(canvas, factor * truth, TRUTH)),
            panel("student", canvas, factor, matches[image.id], threshold),
        )
        drawn.append(Picture("", f"Image {image.file_name.partition('.')[0].lstrip('0')}", "", panels))
    return tuple(drawn), threshold
