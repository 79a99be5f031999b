"""The study's figures out of its rows: mean and standard deviation over seeds, paired differences with a t-interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from benchmarks.study_plan import Study

CONFIDENCE = 0.95

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """AP of a method minus the reference's, seed by seed. interval: of the mean, by Student's t; None with one seed."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference:
        """differences: at least one."""
        centre, n = mean(differences), len(differences)
        if n < 2:
            return cls(centre, None, n)
        half = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / n**0.5
        return cls(centre, (centre - half, centre + half), n)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]"


@dataclass(frozen=True)
class Line:
    """A method on a data set and a split. scores: AP by seed. difference: to the reference; None for itself, or where no
    seed is in both."""

    method: str
    shown: str
    scores: dict[int, float]
    ap50: float
    epochs: int
    minutes: float
    difference: Difference | None

    @property
    def AP(self) -> str:
        """Mean ± standard deviation (n - 1) over the seeds."""
        values = list(self.scores.values())
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def lines(rows: Iterable[Row], study: Study, dataset: str, split: str) -> list[Line]:
    """Of the methods that have a row, in the study's order; the reference is `study.reference`."""
    found = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
    by_method = {method: [row for row in found if row["method"] == method.name] for method in study.methods}
    reference = {row["seed"]: row["AP"] for row in found if row["method"] == study.reference}
    made = []
    for method, its in by_method.items():
        if not its:
            continue
        scores = {row["seed"]: float(row["AP"]) for row in its}
        pairs = [scores[seed] - reference[seed] for seed in sorted(scores) if seed in reference]
        comparable = method.name != study.reference and method.stage != "teacher" and pairs
        made.append(
            Line(
                method.name,
                method.shown,
                scores,
                mean(row["AP50"] for row in its),
                its[0]["epochs"],
                mean(row["seconds"] for row in its) / 60,
                Difference.of(pairs) if comparable else None,
            )
        )
    return made


def markdown_parts(rows: Sequence[Row], study: Study, split: str) -> str:
    """AP by the objects' size and by class, the mean of the seeds; a table for each data set. Empty where none is so large."""
    parts = []
    for dataset in sorted({row["dataset"] for row in rows if row["split"] == split}):
        found = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
        classes = list(found[0]["per_class"])
        columns = ["small", "medium", "large", *(name.replace("|", "\\|") for name in classes)]
        parts += [f"**{dataset}**, {split}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for method in study.methods:
            its = [row for row in found if row["method"] == method.name]
            if its:
                each = [
                    [row[key] for key in ("APs", "APm", "APl")] + [row["per_class"][name] for name in classes]
                    for row in its
                ]
                cells = ["" if None in column else f"{mean(column):.1f}" for column in zip(*each, strict=True)]
                parts.append(f"| {method.shown} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def markdown(rows: Sequence[Row], study: Study, split: str) -> str:
    """A table for each data set."""
    parts = []
    images = {row["dataset"]: row["images"] for row in rows if row["split"] == split}
    for dataset, count in sorted(images.items()):
        parts += [
            f"**{dataset}**, {split}, {count} images",
            "",
            f"| | seeds | epochs | minutes | AP | AP50 | less `{study.reference}` |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in lines(rows, study, dataset, split):
            parts.append(
                f"| {line.shown} | {len(line.scores)} | {line.epochs} | {line.minutes:.1f} | {line.AP} | {line.ap50:.1f} | "
                f"{line.difference or ''} |"
            )
        parts.append("")
    return "\n".join(parts)
