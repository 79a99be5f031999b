"""`frs-pipeline report`: the table of one run, or several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from frs.errors import FrsError
from stages.report.summary import NONE, Report, accuracy, cost, number, plain, shown_precision, signed, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SCHEMA = 1
_COLUMNS = (
    "run",
    "teacher AP",
    "control AP",
    "student AP",
    "gain",
    "95% interval",
    "params",
    "p50 ms",
    "file MB",
    "gates",
)

Read = TypeVar("Read")


def show(run_dirs: Sequence[Path]) -> RenderableType:
    """Of one run its table and verdict; of several a row each and what they differ in. Something that rich prints.

    Raises FrsError for a run without a report, or with one that this version cannot read.
    """
    if len(run_dirs) == 1:
        return understood(run_dirs[0], lambda report: table(report, run_dirs[0]))
    runs = [understood(run_dir, _run) for run_dir in run_dirs]
    if len({run.name for run in runs}) < len(runs):  # of several roots
        runs = [replace(run, name=plain(str(run_dir))) for run, run_dir in zip(runs, run_dirs, strict=True)]
    return _compared(runs)


@dataclass(frozen=True)
class _Run:
    """name; row: of the table, behind the name; settings: dotted key -> value of what may differ; val: hash of the data scored
    on; timed_on."""

    name: str
    row: tuple[str, ...]
    settings: dict[str, str]
    val: str
    timed_on: str


def understood(run_dir: Path, read: Callable[[Report], Read]) -> Read:
    """What `read` makes of the run's report.json. Raises FrsError where there is none, or none that it understands."""
    path = run_dir / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["schema"] != SCHEMA:
            raise FrsError(
                f"{path} has schema {report['schema']}, this version reads {SCHEMA}; use the one that wrote it"
            )
        return read(report)
    except FileNotFoundError:
        raise FrsError(f"{path}: there is no report; finish the run with `frs-pipeline run`") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise FrsError(
            f"{path} is damaged or was written by another version ({type(error).__name__}: {error}); give the run's "
            "command again, and it is written anew"
        ) from None


def _run(report: Report) -> _Run:
    distillation, spent = report["distillation"], cost(report, "student")
    aps = [
        number(accuracy(report, model, "torch", "fp32", "reference")["AP"]) if model in report["models"] else NONE
        for model in ("teacher", "control", "student")
    ]
    gain, interval = distillation["gain_AP"], distillation["gain_interval"]
    passed = sum(gate["passed"] for gate in report["gates"])
    row = (
        *aps,
        NONE if gain is None else signed(gain),
        NONE if interval is None else f"{signed(interval[0])} to {signed(interval[1])}",
        f"{report['models']['student']['params'] / 1e6:.2f} M",
        number(spent["latency_ms"]["p50"]),
        number(spent["artifact_mb"]),
        f"{passed} of {len(report['gates'])}",
    )
    chosen = {f"distill.{key} in force": number(distillation[key], 6) for key in ("alpha", "beta")}
    environment = report["environment"]
    versions = {f"{name} (version)": version for name, version in environment["packages"].items()}
    facts = {
        "commit": report["commit"],
        **{f"data.{split} (sha256)": of_split["sha256"][:12] for split, of_split in report["data"].items()},
        **{f"machine.{key}": value for key, value in environment["machine"].items()},
    }
    others = dict(_leaves({key: value for key, value in facts.items() if value is not None}))
    config = {key: value for key, value in _leaves(report["config"]) if key != "name"}
    threads = report["profiles"][0]["threads"]
    timed_on = plain(f"{environment['machine']['cpu']}, {shown_precision(report)}, {threads} threads")
    settings = {**config, **chosen, **versions, **others}
    return _Run(plain(report["name"]), row, settings, report["data"]["val"]["sha256"], timed_on)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        plain = isinstance(value, str) and value.isprintable()  # a terminal must not be steered by a file's name
        yield prefix, value if plain else json.dumps(value)


def _compared(runs: Sequence[_Run]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    warnings = []
    if len({run.val for run in runs}) > 1:
        warnings.append("Not scored on the same validation images: their APs cannot be compared.")
    if len({run.timed_on for run in runs}) > 1:
        machines = "; ".join(f"{run.name}: {run.timed_on}" for run in runs)
        warnings.append(f"Not timed alike ({machines}): their latencies cannot be compared.")
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    settings = [(key, *(run.settings.get(key, NONE) for run in runs)) for key in keys]
    differing = [row for row in settings if len(set(row[1:])) > 1]
    return Group(
        _grid(_COLUMNS, [(run.name, *run.row) for run in runs]),
        *(Text(warning) for warning in warnings),
        _grid(("what differs", *(run.name for run in runs)), differing)
        if differing
        else Text("They differ in nothing."),
    )


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for place, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
