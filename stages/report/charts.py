"""The report's charts, by matplotlib, as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from stages.report.summary import Report, accuracy, cost, signed
from stages.report.tables import RUNTIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib writes, and the page's variables that stand there in the end: so one chart is right in light, in
# dark and in print.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
MODELS = {"teacher": "#040404", "control": "#050505", "student": "#060606"}
_TERMS = {"detection": "#060606", "features": "#070707", "classes": "#080808"}
_VARIABLES = {
    _INK: "ink", _MUTED: "muted", _GRID: "grid", "#040404": "teacher", "#050505": "control", "#060606": "student",
    "#070707": "features", "#080808": "classes",
}  # fmt: skip
# Told apart without colour too.
_LINES = {"teacher": ":", "control": "--", "student": "-"}
_SHAPES = {"teacher": "D", "control": "o", "student": "o"}
_MARKERS = "osD^vP<>X"
CLASSES_SHOWN = 30
_COLUMNS = 22


def charts(report: Report) -> dict[str, str]:
    """Name -> SVG element: cost, kinds, loss, distillation; gain where there is a control, ap where it was measured during the
    training, classes where there are several, sensitivity where the AP of int8 layers was measured group by group."""
    drawn = {each.__name__[1:]: each(report) for each in (_cost, _kinds, _loss, _distillation)}
    if report["distillation"]["gain_AP"] is not None:
        drawn["gain"] = _gain(report)
    if any(epoch["AP"] is not None for history in report["training"].values() for epoch in history):
        drawn["ap"] = _ap(report)
    if len(report["classes"]) > 1:
        drawn["classes"] = _classes(report)
    if any(made["sensitivity"]["by"] == "AP" for made in report["quantization"].values()):
        drawn["sensitivity"] = _sensitivity(report)
    return drawn


def _gain(report: Report) -> str:
    value, (low, high) = report["distillation"]["gain_AP"], report["distillation"]["gain_interval"]
    alt = f"The gain of {signed(value)} AP with its 95% interval, {signed(low)} to {signed(high)}, against zero."

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_MUTED, linewidth=1)
        axes.plot([low, high], [0, 0], color=MODELS["student"], linewidth=5, solid_capstyle="round", alpha=0.45)
        axes.plot([value], [0], "o", color=MODELS["student"], markersize=10)
        margin = 0.15 * max(abs(low), abs(high), 1.0)
        axes.set_xlim(min(low, 0) - margin, max(high, 0) + margin)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.set_xlabel("AP of the student less AP of the control")

    return _svg("gain", alt, draw, height=1.15)


def _cost(report: Report) -> str:
    kinds = list(dict.fromkeys((profile["runtime"], profile["precision"]) for profile in report["profiles"]))
    several = len({runtime for runtime, _ in kinds}) > 1
    scored = {
        (row["model"], row["runtime"], row["precision"]): row["AP"]
        for row in report["accuracy"]
        if row["decode"] == "graph"
    }

    def draw(axes: Axes) -> None:
        highest = 0.0
        for model in report["models"]:
            fill = "none" if model == "control" else MODELS[model]
            axes.plot([], [], "o", markerfacecolor=fill, markeredgecolor=MODELS[model], markersize=9, label=model)
        for profile in report["profiles"]:
            model, precision, latency = profile["model"], profile["precision"], profile["latency_ms"]
            ap = scored.get((model, profile["runtime"], precision))
            if ap is None or profile["batch"] != report["profiles"][0]["batch"]:
                continue
            axes.plot([latency["p50"], latency["p99"]], [ap, ap], color=MODELS[model], linewidth=2, alpha=0.35)
            axes.plot(
                latency["p50"],
                ap,
                _MARKERS[kinds.index((profile["runtime"], precision))],
                color=MODELS[model],
                markersize=9,
            )
            highest = max(highest, ap)
        if "control" in report["models"]:
            ap, p50 = (
                accuracy(report, "control", "torch", "fp32", "graph")["AP"],
                cost(report, "student")["latency_ms"]["p50"],
            )
            axes.plot(p50, ap, "o", markerfacecolor="none", markeredgecolor=MODELS["control"], markersize=9)
            highest = max(highest, ap)
        for marker, (runtime, precision) in zip(_MARKERS, kinds, strict=False):
            axes.plot([], [], marker, color=_MUTED, label=f"{precision}, {RUNTIMES[runtime]}" if several else precision)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.12 * highest or 1)
        axes.set_xlabel("latency in ms: the mark at p50, the line to p99")
        axes.set_ylabel("AP")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)

    return _svg("cost", "AP of every exported file against its latency; the tables have the figures.", draw)


def _loss(report: Report) -> str:
    def draw(axes: Axes) -> None:
        for model, history in report["training"].items():
            if history:
                epochs = [epoch["epoch"] + 1 for epoch in history]
                losses = [_detection(epoch) for epoch in history]
                axes.plot(epochs, losses, _line(history, _LINES[model]), color=MODELS[model], label=model)
        _epochs(axes, report, "detection loss")

    return _svg("loss", "Mean detection loss of each epoch of teacher, control and student.", draw)


def _ap(report: Report) -> str:
    def draw(axes: Axes) -> None:
        for model, history in report["training"].items():
            measured = [(epoch["epoch"] + 1, epoch["AP"]) for epoch in history if epoch["AP"] is not None]
            if measured:
                axes.plot(
                    *zip(*measured, strict=True), "o" + _LINES[model], color=MODELS[model], label=model, markersize=5
                )
        axes.set_ylim(bottom=0)
        _epochs(axes, report, "validation AP")

    return _svg("ap", "Validation AP during the training of teacher, control and student.", draw)


def _distillation(report: Report) -> str:
    def draw(axes: Axes) -> None:
        history = report["training"]["student"]
        epochs = [epoch["epoch"] + 1 for epoch in history]
        losses = [_detection(epoch) for epoch in history]
        axes.plot(epochs, losses, _line(history), color=_TERMS["detection"], label="detection")
        for term, weight in (("features", "alpha"), ("classes", "beta")):
            scaled = [_weight(epoch, weight) * epoch["terms"][f"frs_{term}"] for epoch in history]
            axes.plot(epochs, scaled, _line(history), color=_TERMS[term], label=f"{weight} · w · {term}")
        axes.set_yscale("log")  # a term that pulls as hard as the boxes may be twenty times as large
        _epochs(axes, report, "part of the student's loss")

    return _svg("distillation", "Detection loss and the two weighted FRS terms of the student, epoch by epoch.", draw)


def _kinds(report: Report) -> str:
    scored = _reference(report)
    named = {"AP50": "AP50", "AP75": "AP75", "small": "APs", "medium": "APm", "large": "APl"}
    shown = {name: key for name, key in reversed(named.items()) if scored["student"][key] is not None}
    return _dumbbells(
        "kinds",
        "AP by overlap and by size of the objects, of teacher, control and student.",
        list(shown),
        {model: [row[key] for key in shown.values()] for model, row in scored.items()},
    )


def _classes(report: Report) -> str:
    scored = {model: row["per_class"] for model, row in _reference(report).items()}
    names = [name for name in report["classes"] if scored["student"].get(name) is not None]
    beside = scored.get("control")
    names.sort(key=lambda name: scored["student"][name] - (beside[name] if beside else 0.0))
    # Of many classes the ones that changed most tell most; all of them are in the table.
    half = CLASSES_SHOWN // 2
    shown = names if len(names) <= CLASSES_SHOWN else [*names[:half], *names[-half:]]
    values = {model: [by_class[name] for name in shown] for model, by_class in scored.items()}
    return _dumbbells(
        "classes", "AP by class of teacher, control and student.", [_short(name) for name in shown], values
    )


def _reference(report: Report) -> dict[str, dict[str, Any]]:
    return {model: accuracy(report, model, "torch", "fp32", "reference") for model in report["models"]}


def _dumbbells(name: str, alt: str, labels: Sequence[str], values: Mapping[str, Sequence[float]]) -> str:
    """A row for each label, in it a mark for each model."""

    def draw(axes: Axes) -> None:
        rows = range(len(labels))
        columns = list(zip(*values.values(), strict=True))
        axes.hlines(rows, [min(c) for c in columns], [max(c) for c in columns], color=_GRID, linewidth=4, zorder=1)
        for model, of_model in values.items():
            fill = "none" if model == "control" else MODELS[model]
            shape: Any = {"marker": _SHAPES[model], "markerfacecolor": fill, "markersize": 9, "linestyle": "none"}
            axes.plot(of_model, rows, **shape, color=MODELS[model], label=model, zorder=2, clip_on=False)
        axes.set_yticks(rows, labels)
        axes.tick_params(axis="y", pad=9)  # a mark at 0 is not under its label
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_xlim(0, 1.05 * max(map(max, columns)) or 1)
        axes.set_xlabel("AP")
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)

    return _svg(name, alt, draw, height=max(3.6, 1.2 + 0.3 * len(labels)))


def _sensitivity(report: Report) -> str:
    """A row for each group of layers, in it a mark for each file on which it was measured."""
    measured = {
        label: {f"{label.partition('_')[0]} {group['name']}": group["drop"] for group in made["sensitivity"]["groups"]}
        for label, made in report["quantization"].items()
        if made["sensitivity"]["by"] == "AP" and made["sensitivity"]["measured_on"] == label
    }
    names = list(dict.fromkeys(name for drops in measured.values() for name in drops))[::-1]
    models = {name.partition(" ")[0] for name in names}

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_MUTED, linewidth=1)
        for marker, (label, drops) in zip(_MARKERS, measured.items(), strict=False):
            rows = [row for row, name in enumerate(names) if name in drops]
            axes.plot(
                [drops[names[row]] for row in rows], rows, marker, color=MODELS[label.partition("_")[0]], markersize=8,
                markerfacecolor="none" if marker == "o" else None, label=label.replace("_", " ", 1),
            )  # fmt: skip
        axes.set_yticks(
            range(len(names)), [_short(name if len(models) > 1 else name.partition(" ")[2]) for name in names]
        )
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("AP lost")
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)

    return _svg(
        "sensitivity", "AP lost on held-out images with one group of layers quantised; the table has the figures.", draw,
        height=max(3.6, 1.2 + 0.3 * len(names)),
    )  # fmt: skip


def _detection(epoch: dict[str, Any]) -> float:
    return float(sum(value for name, value in epoch["terms"].items() if name != "loss" and not name.startswith("frs_")))


def _weight(epoch: dict[str, Any], name: str) -> float:
    """Of an FRS term at the end of the epoch; 0 while `auto` measured."""
    figures = epoch["figures"]
    return float(figures[name] * figures["w"]) if figures else 0.0


def _epochs(axes: Axes, report: Report, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    longest = max(len(history) for history in report["training"].values())
    axes.set_xlim(0.5, longest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.legend(frameon=False)


def _line(history: Sequence[Any], style: str = "-") -> str:
    return "o" if len(history) == 1 else style  # one point is no line


def _short(name: str) -> str:
    """At most `_COLUMNS` columns wide: most letters take one, East Asian ones and capitals more."""
    flat, width = "", 0.0
    for letter in " ".join(name.split()):
        width += 2.0 if east_asian_width(letter) in "WF" else 1.4 if letter.isupper() else 1.0
        if width > _COLUMNS:
            return f"{flat}…"
        flat += letter
    return flat


def _svg(name: str, alt: str, draw: Callable[[Axes], None], height: float = 3.6) -> str:
    """One chart, 5.6 inches wide, as an element whose ids are its own in the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 11,
        "text.color": _INK, "axes.labelcolor": _MUTED, "axes.edgecolor": _GRID, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": _GRID, "grid.linewidth": 0.8, "lines.linewidth": 2.2, "axes.axisbelow": True,
    }  # fmt: skip
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font has it, not matplotlib's
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), name, alt)


def _for_page(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _restyled(tag[0], name), svg)  # tags alone: between them are names of classes
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', svg, count=1)


def _restyled(tag: str, name: str) -> str:
    for colour, variable in _VARIABLES.items():
        tag = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{variable})", tag)
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", tag)
    return re.sub(r"font-family: [^;\"]*;?", "", tag)
