"""What a run shows: a live line with rich on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from pipeline.duration import seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

Clock = Callable[[], float]


class Console:
    """Plain text, at most one line of progress per `interval` seconds. Also the `Progress` of the stage that runs.

    Whatever is shown may come from outside (a class name, a path): control characters in it are made visible.
    """

    def __init__(self, file: TextIO | None = None, *, interval: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._file = file or sys.stdout
        self._interval = interval
        self._clock = clock
        self._stage = ""
        self._label = ""
        self._began = 0.0
        self._shown = 0.0
        self._first: tuple[float, float, float] | None = None  # time, done and total at the first update

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def print(self, text: str = "") -> None:
        """Print text, which may have several lines."""
        self._line(printable(text))

    def show(self, renderable: RenderableType) -> None:
        """Print something that rich draws: a table."""
        from rich.console import Console as Terminal

        Terminal(file=self._file, width=120, color_system=None).print(renderable)

    def log(self, message: str) -> None:
        """Print one line that stays, under the name of the stage that runs."""
        self.print(f"{self._stage}: {message}" if self._stage else message)

    def update(self, done: float, total: float, **figures: float | str) -> None:
        """Show how far the stage is: `done` of `total`, the figures beside it, and the time left."""
        now = self._clock()
        if self._first is None or self._first[2] != total:  # another total: the stage counts something else now
            self._first = now, done, total
        self._progress(done, total, printable(", ".join(_figures(figures) + self._left(now, done, total))))

    @contextmanager
    def working(self, label: str) -> Iterator[None]:
        """Show progress under a label while something is done that is no stage."""
        self._label, self._first, self._shown = label, None, self._clock()
        self._open()
        try:
            yield
        finally:
            self._stop()
            self._label = ""

    def stage_started(self, name: str, number: int, count: int, reasons: Sequence[str]) -> None:
        """A stage begins, for these reasons."""
        self._stage, self._label, self._first = name, f"[{number}/{count}] {name}", None
        self._began = self._shown = self._clock()
        self.print(f"{self._label}: starts ({'; '.join(reasons)})")

    def stage_reused(self, name: str, number: int, count: int) -> None:
        """A stage had nothing to do."""
        self.print(f"[{number}/{count}] {name}: reused")

    def stage_finished(self, how: str) -> None:
        """The stage that began has ended well."""
        self._end(f"{how} in {seconds(self._clock() - self._began)}")

    def stage_failed(self) -> None:
        """The stage that began has not ended well."""
        self._end(f"stopped after {seconds(self._clock() - self._began)}")

    def summary(self, name: str, count: int, reused: int, duration: float, folder: Path) -> None:
        """The last line of a run."""
        work = "nothing to do" if reused == count else f"{count - reused} of {count} stages ran"
        self.print(f"{name}: {work}, {seconds(duration)}; results in {folder}")

    def _line(self, text: str) -> None:
        self._file.write(text + "\n")
        self._file.flush()

    def _progress(self, done: float, total: float, text: str) -> None:
        now = self._clock()
        if now - self._shown >= self._interval:
            self._shown = now
            percent = f"{100 * done / total:.0f}%" if total > 0 else ""
            self._line(f"{self._label}: {', '.join(part for part in (percent, text) if part)}")

    def _open(self) -> None:
        """A terminal has a bar."""

    def _stop(self) -> None:
        """And takes it away."""

    def _end(self, how: str) -> None:
        self._stop()
        self.print(f"{self._label}: {how}")
        self._stage = self._label = ""

    def _left(self, now: float, done: float, total: float) -> list[str]:
        assert self._first is not None
        elapsed, advanced = now - self._first[0], done - self._first[1]
        if advanced <= 0 or done >= total:
            return []
        return [f"{seconds(elapsed / advanced * (total - done))} left"]


class TerminalConsole(Console):
    """The same with rich: a bar for the stage that runs, at the foot of the lines that stay."""

    def __init__(self, file: TextIO | None = None, *, clock: Clock = time.monotonic) -> None:
        from rich.console import Console as Terminal

        super().__init__(file, clock=clock)
        self._terminal = Terminal(file=self._file, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._bar: Progress | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def show(self, renderable: RenderableType) -> None:
        self._terminal.print(renderable)

    def stage_started(self, name: str, number: int, count: int, reasons: Sequence[str]) -> None:
        super().stage_started(name, number, count, reasons)
        self._open()

    def _open(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._terminal,
            transient=True,
        )
        self._bar.add_task(printable(self._label), total=None, text="")
        self._bar.start()

    def _line(self, text: str) -> None:
        self._terminal.print(text, soft_wrap=True)

    def _progress(self, done: float, total: float, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, text=text)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def open_console() -> Console:
    """The console for standard output."""
    return TerminalConsole() if sys.stdout.isatty() else Console()


def printable(text: str) -> str:
    """Text without the power to move the cursor or colour a terminal: control characters are written as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _figures(figures: dict[str, float | str]) -> list[str]:
    return [f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in figures.items()]
