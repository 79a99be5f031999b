"""The devices of a run side by side, this machine among them: in the terminal, and as `devices.html`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.device.results import Figures, Key, Machine, machine, read
from stages.report.show import understood
from stages.report.summary import NONE, Report, number, plain
from stages.report.tables import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

PAGE = "devices.html"
HERE = "this machine"
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
_DOUBTFUL = "!"


def _latency(figures: Figures) -> str:
    mark = f" {_DOUBTFUL}" if figures.doubtful else ""
    return NONE if figures.p50 is None else f"{number(figures.p50)} / {number(figures.p99)}{mark}"


_MEASURES: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("latency p50 / p99, ms", _latency),
    ("AP of the file", lambda figures: number(figures.ap)),
    ("peak memory, MB", lambda figures: number(figures.memory, 0)),
    ("GPU memory, MB", lambda figures: number(figures.gpu_memory, 0)),
    ("energy, mJ a call", lambda figures: number(figures.energy)),
)


class Section(NamedTuple):
    """A table: artifacts in rows, machines in columns; title: what is in its cells."""

    title: str
    table: Table


@dataclass(frozen=True)
class Comparison:
    """sections: first what each machine is and how it stood, then a measure each. notes: what must be known with them."""

    name: str
    sections: list[Section]
    notes: list[str]


def compare(run_dir: Path, report: Report) -> Comparison | None:
    """A finished run with its devices; None where it has none. Raises as `machine` for a report that is damaged."""
    devices, faults = read(run_dir)
    if not devices and not faults:
        return None
    here = machine(HERE, report)
    machines = [here, *devices]
    header = ("", *(each.name for each in machines))
    keys = list(dict.fromkeys(key for each in machines for key in each.figures))
    files = list(dict.fromkeys(key[:2] for key in keys))
    keys.sort(key=lambda key: files.index(key[:2]))  # the runtimes of one file together
    sections = [Section("machine", Table(header, list(_states(machines))))]
    silent = []
    for title, shown in _MEASURES:
        rows = [(_artifact(key), *(shown(each.figures.get(key, Figures())) for each in machines)) for key in keys]
        told = [row for row in rows if set(row[1:]) != {NONE}]
        if told:
            sections.append(Section(title, Table(header, told)))
        else:
            silent.append(title.partition(",")[0])
    notes = [*_notes(here, devices), *([f"Nowhere measured: {', '.join(silent)}."] if silent else []), *faults]
    return Comparison(str(report["name"]), sections, notes)


def show_devices(run_dir: Path) -> RenderableType | None:
    """What `report` prints below a run's own table; writes `devices.html` too. None where no device has answered yet.

    Raises FrsError as `show` does.
    """
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    comparison = understood(run_dir, lambda report: compare(run_dir, report))
    if comparison is None:
        return None
    page = run_dir / PAGE
    page.write_text(devices_page(comparison), encoding="utf-8", errors="backslashreplace")
    drawn = Drawn(title="Devices side by side", title_justify="left")
    for place, name in enumerate(comparison.sections[0].table.header):
        drawn.add_column(Text(plain(name)), justify="right" if place else "left", overflow="fold")
    for title, table in comparison.sections:
        if title != "machine":
            drawn.add_row(Text(title, style="italic"))
        for first, *cells in table.rows:
            indent = "" if title == "machine" else "  "
            drawn.add_row(Text(indent + plain(first)), *(Text(plain(cell)) for cell in cells))
        drawn.add_section()
    notes = (Text(plain(note)) for note in comparison.notes)
    return Group(drawn, *notes, Text(f"Devices: {page}"))


def devices_page(comparison: Comparison) -> str:
    """One file, no script, nothing loaded; the template escapes everything."""
    from stages.report.page import templates

    return templates("stages.device").get_template("devices.html").render(comparison=comparison)


def _artifact(key: Key) -> str:
    model, precision, runtime = key
    return f"{model} {precision}, {_RUNTIMES.get(runtime, runtime)}"


def _states(machines: Sequence[Machine]) -> Iterator[tuple[str, ...]]:
    yield ("device", *(each.device for each in machines))
    yield ("measured", *(each.created[:10] for each in machines))
    for key in dict.fromkeys(key for each in machines for key in each.state):
        yield (key, *(each.state.get(key, NONE) for each in machines))
    yield ("images scored", *(str(_images(each) or NONE) for each in machines))


def _images(of: Machine) -> int | None:
    return next((figures.images for figures in of.figures.values() if figures.images is not None), None)


def _notes(here: Machine, devices: Sequence[Machine]) -> Iterator[str]:
    if len({_images(each) for each in (here, *devices) if _images(each) is not None}) > 1:
        yield "Not scored on the same images: APs of different columns cannot be compared."
    for each in devices:
        if any(here.files.get(file) not in (None, sha256) for file, sha256 in each.files.items()):
            yield f"{each.name}: measured with other files than this report's; push to it again."
    warned: dict[tuple[str, ...], list[str]] = {}
    for each in (here, *devices):
        warned.setdefault(each.warnings, []).append(each.name)
    for warnings, names in warned.items():
        if warnings:
            yield f"{_DOUBTFUL} Times of {', '.join(names)} that are not to be quoted: {' '.join(warnings)}"
