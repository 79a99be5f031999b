from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipeline.console import Console, TerminalConsole, printable
from pipeline.duration import seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_text_is_thin_but_has_start_and_end() -> None:
    shown, clock = io.StringIO(), Clock()
    console = Console(shown, clock=clock)
    console.stage_started("teacher", 2, 9, ["never run"])
    for step in range(101):
        clock.now = 0.25 * step
        console.update(step, 100, epoch="1/3", loss=0.51234567, step=step)
    console.log("AP 12.5")
    console.stage_finished("done")
    assert shown.getvalue().splitlines() == [
        "[2/9] teacher: starts (never run)",
        "[2/9] teacher: 40%, epoch 1/3, loss 0.5123, step 40, 15 s left",
        "[2/9] teacher: 80%, epoch 1/3, loss 0.5123, step 80, 5.0 s left",
        "teacher: AP 12.5",
        "[2/9] teacher: done in 25 s",
    ]


def test_work_that_is_no_stage_shows_its_progress_too() -> None:
    shown, clock = io.StringIO(), Clock()
    console = Console(shown, clock=clock)
    with console.working("check"):
        for clock.now in (0, 6, 12, 18, 24):
            console.update(clock.now, 24)
        console.print("fine")
    assert shown.getvalue().splitlines() == ["check: 50%, 12 s left", "check: 100%", "fine"]


def test_time_left_counts_from_where_this_attempt_began() -> None:
    shown, clock = io.StringIO(), Clock()
    console = Console(shown, clock=clock)
    console.stage_started("teacher", 1, 1, [])
    console.update(500, 1000)
    clock.now = 10
    console.update(510, 1000)
    clock.now = 20
    console.update(3, 30)  # counts something else now: nothing to extrapolate from
    assert "51%, 8 min 10 s left" in shown.getvalue()
    assert shown.getvalue().splitlines()[-1] == "[1/1] teacher: 10%"


def test_a_run_ends_with_a_summary() -> None:
    shown = io.StringIO()
    console = Console(shown)
    console.stage_reused("data", 1, 9)
    console.summary("quick", 9, 7, 65, Path("runs/quick"))
    console.summary("quick", 9, 9, 0.2, Path("runs/quick"))
    assert shown.getvalue().splitlines() == [
        "[1/9] data: reused",
        "quick: 2 of 9 stages ran, 1 min 05 s; results in runs/quick",
        "quick: nothing to do, 0.2 s; results in runs/quick",
    ]


@pytest.mark.parametrize("kind", [Console, TerminalConsole])
def test_text_from_outside_is_shown_as_it_is(kind: type[Console]) -> None:
    shown = io.StringIO()
    with kind(shown) as console:
        console.stage_started("data", 1, 1, ["[red]class[/red]"])
        console.log("[bold]cat[/] :smile: \x1b[2J [/nonsense]")
        console.update(1, 2, name="[/nonsense] {task}")
        console.stage_finished("done")
    text = shown.getvalue()
    assert "([red]class[/red])" in text
    assert r"data: [bold]cat[/] :smile: \x1b[2J [/nonsense]" in text
    assert "\x1b[2J" not in text


def test_a_terminal_gets_a_bar_with_figures() -> None:
    shown = io.StringIO()
    with TerminalConsole(shown) as console:
        console.stage_started("teacher", 2, 9, ["never run"])
        console.update(5, 10, epoch="1/2", loss=0.25, AP=9.5)
        console.stage_failed()
    text = shown.getvalue()
    assert "\x1b[" in text
    assert "epoch 1/2, loss 0.25, AP 9.5" in text
    assert "[2/9] teacher: stopped after 0." in text


def test_a_table_is_not_squeezed_where_there_is_no_terminal() -> None:
    from rich.table import Table

    table = Table(*(f"column number {i}" for i in range(6)))
    table.add_row(*("value" for _ in range(6)))
    shown = io.StringIO()
    Console(shown).show(table)
    assert "column number 5" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_printable_keeps_lines_and_letters() -> None:
    assert printable("é 猫\n\x07\t\u202e") == "é 猫\n\\x07\\t\\u202e"


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_seconds(duration: float, text: str) -> None:
    assert seconds(duration) == text
