"""The study's charts out of its rows, as SVG.

    python -m benchmarks.study_figures main docs

`study-gain.svg`: what each method gains over the control on the split that is reported: every seed, their mean, and the
interval of the mean. `study-curves.svg`: validation AP over the training, mean of the seeds, and the lowest and the highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study import read_rows
from benchmarks.study_plan import MAIN, STUDIES, Study
from benchmarks.study_tables import lines

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "frs", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white", "figure.constrained_layout.use": True,
}  # fmt: skip
CURVES = {
    "control": ("#6b7280", "--"),
    "frs": ("#0f766e", "-"),
    "everywhere": ("#b45309", "-."),
    "boxes": ("#7c3aed", ":"),
}
NAMES = {method.name: method.shown.split(":")[0] for method in MAIN.methods}
INK, MUTED = "#334155", "#94a3b8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("folder", type=Path, help="where they are written")
    options = parser.parse_args()
    study = STUDIES[options.study]
    rows = read_rows(study)
    if not rows:
        parser.error(f"benchmarks/results/{study.name}.jsonl has no rows: python -m benchmarks.study run {study.name}")
    datasets = sorted({row["dataset"] for row in rows})
    with matplotlib.rc_context(STYLE):
        for name, draw, height in (("gain", gains, 3.6), ("curves", curves, 3.4)):
            figure = Figure(figsize=(9.6, height))
            axes = figure.subplots(1, len(datasets), squeeze=False)[0]
            for each, dataset in zip(axes, datasets, strict=True):
                draw(each, rows, study, dataset)
                each.set_title(dataset, loc="left", fontweight="bold")
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, frameon=False)
            figure.savefig(options.folder / f"study-{name}.svg", metadata={"Date": None})


def gains(axes: Axes, rows: Sequence[dict[str, Any]], study: Study, dataset: str) -> None:
    compared = [line for line in lines(rows, study, dataset, study.splits[-1]) if line.difference is not None]
    control = {row["seed"]: row["AP"] for row in of(rows, dataset, study.reference, study.splits[-1])}
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, line in enumerate(reversed(compared)):
        assert line.difference is not None
        colour = CURVES.get(line.method, (INK, ""))[0]
        if line.difference.interval is not None:
            axes.plot(
                line.difference.interval, [place] * 2, color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt"
            )
        seeds = [score - control[seed] for seed, score in line.scores.items() if seed in control]
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, markersize=3, alpha=0.6)
        axes.plot(line.difference.mean, place, "D", color=colour, markersize=6)
    axes.plot([], [], "o", color=INK, markersize=3, label="a seed")
    axes.plot([], [], "D", color=INK, markersize=6, label="their mean")
    axes.plot([], [], color=INK, linewidth=5, alpha=0.3, label="95% interval of the mean")
    axes.set_yticks(range(len(compared)), [line.shown.split(":")[0] for line in reversed(compared)])
    axes.set_xlabel("AP of the method less AP of the control")
    axes.grid(axis="x", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)


def curves(axes: Axes, rows: Sequence[dict[str, Any]], study: Study, dataset: str) -> None:
    for method, (colour, dashes) in CURVES.items():
        found = [row["curve"] for row in of(rows, dataset, method, "val")]
        if not found:
            continue
        epochs = [epoch for epoch, _ in found[0]]
        scores = [[dict(curve)[epoch] for curve in map(pairs, found)] for epoch in epochs]
        axes.plot(epochs, [mean(each) for each in scores], dashes, color=colour, label=NAMES[method])
        axes.fill_between(epochs, list(map(min, scores)), list(map(max, scores)), color=colour, alpha=0.15, linewidth=0)
    (teacher,) = {row["AP"] for row in of(rows, dataset, "teacher", "val")} or {None}
    if teacher is not None:
        axes.axhline(teacher, color=MUTED, linewidth=1, label="teacher, in the end")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation AP")


def of(rows: Sequence[dict[str, Any]], dataset: str, method: str, split: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["dataset"], row["method"], row["split"]) == (dataset, method, split)]


def pairs(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(epoch, score) for epoch, score in curve]


if __name__ == "__main__":
    main()
