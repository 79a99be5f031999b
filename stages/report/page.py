"""report.html: one file that opens from disk, asks nothing of any network and runs no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.report import shipped, tables
from stages.report.charts import CLASSES_SHOWN, charts
from stages.report.disagreements import FILE, TORCH
from stages.report.gates import failures, worst_images
from stages.report.pictures import COLOURS, Pictures
from stages.report.summary import NONE, Report, accuracy, cost, measured_at, number, shown_precision, verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

_PANEL = 480
"""Longest side of a photograph in the page, in pixels."""
_TABLES = ("models", "class", "accuracy", "latency", "memory", "files", "gates", "data")
_SHIPPED = ("artifacts", "int8", "sensitivity")
_COLOURS = {**COLOURS, "torch": TORCH, "file": FILE}
_TONES = {"helped": "good", "hurt": "bad"}


def page(report: Report, pictures: Pictures, config: str) -> str:
    """The report for people; `config` is the resolved configuration as YAML. The template escapes everything."""
    from markupsafe import Markup

    return (
        templates()
        .get_template("report.html")
        .render(
            report=report,
            pictures=pictures,
            config=config,
            verdict=verdict(report),
            tone=_TONES.get(report["distillation"]["verdict"], "open"),
            failures=failures(report["gates"]),
            failures_in_full=failures(report["gates"], worst_images(report)),
            kept=shipped.kept_layers(report),
            classes_shown=CLASSES_SHOWN,
            threads=tables.threads(report),
            facts=list(_facts(report)),
            shown=shown_precision(report),
            measured_at=measured_at(report),
            charts={name: Markup(svg) for name, svg in charts(report).items()},
            taught=tables.taught(report),
            tables={
                **{name: getattr(tables, f"{name}_table")(report) for name in _TABLES},
                **{name: getattr(shipped, f"{name}_table")(report) for name in _SHIPPED},
            },
            timed=tables.timed(report),
            cautions=tables.cautions(report),
            circumstances=tables.circumstances(report),
            not_measured=tables.not_measured(report),
            environment=list(tables.environment(report)),
            colours={name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in _COLOURS.items()},
        )
    )


def templates(*packages: str) -> Environment:
    """The templates of these packages and of the report; they escape by themselves, and know no undefined name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in (*packages, "stages.report")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "jpeg": _jpeg, "thousands": "{:,}".format}
    return environment


def _facts(report: Report) -> Iterator[tuple[str, str, str]]:
    """What the student reaches and costs beside the teacher: (label, figure, comparison)."""
    models = report["models"]
    aps = {model: accuracy(report, model, "torch", "fp32", "reference")["AP"] for model in ("teacher", "student")}
    costs = {model: cost(report, model) for model in ("teacher", "student")}
    yield "AP of the student", number(aps["student"]), f"teacher {number(aps['teacher'])}"
    for label, unit, of in (
        ("parameters", " M", {model: models[model]["params"] / 1e6 for model in costs}),
        ("latency, p50", " ms", {model: each["latency_ms"]["p50"] for model, each in costs.items()}),
        ("peak memory", " MB", {model: each["peak_memory_mb"] for model, each in costs.items()}),
    ):
        yield label, _figure(of["student"], unit), _share(of["student"], of["teacher"], unit)


def _share(student: float | None, teacher: float | None, unit: str) -> str:
    if not student or not teacher:
        return f"teacher {_figure(teacher, unit)}"
    return f"{student / teacher:.0%} of the teacher's {_figure(teacher, unit)}"


def _figure(value: float | None, unit: str) -> str:
    """With a second digit where it is small, and without a unit where it was not measured."""
    return NONE if value is None else number(value, 1 if value >= 1 else 2) + unit


def _jpeg(picture: Image) -> str:
    """A picture as a data URI."""
    small = picture.copy()
    small.thumbnail((_PANEL, _PANEL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
