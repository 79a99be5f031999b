"""Kills at random moments of every stage, and what the same command makes of it."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.lab import STAGES, Struck, copy, entries, executed, leftovers, outputs, reused, run, strike

KILLS_EACH = 6
CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
LAST_LINE = "frs-pipeline: interrupted; the same command continues"


def moments(stage: str, how: signal.Signals) -> random.Random:
    """A generator for the moments of a stage, which is the same in every campaign."""
    return random.Random(f"{how.name} {stage}")


def check_struck(struck: Struck, how: signal.Signals) -> None:
    assert struck.code == CODES[how], struck.stderr
    assert "Traceback" not in struck.stderr
    if how is not signal.SIGKILL:
        assert struck.stderr.startswith(LAST_LINE), struck.stderr
        assert struck.stderr.count("\n") == 1


def check_whole(folder: Path, undisturbed: Undisturbed, *, until: str = STAGES[-1]) -> None:
    """Every finished byte is that of the undisturbed run, and nothing is left lying about."""
    stages = STAGES[: STAGES.index(until) + 1]
    wanted = {key: value for key, value in undisturbed.outputs.items() if key.split("/")[0] in stages}
    found = outputs(folder)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if found[key] != wanted[key]] == []
    assert leftovers(folder) == []


def test_a_run_that_is_killed_once_in_every_stage(tmp_path: Path, undisturbed: Undisturbed) -> None:
    fell = []
    for stage in STAGES:
        if _finished(tmp_path, stage):  # the strike before came late, or the machine was quicker than it had been
            continue
        delay = moments(stage, signal.SIGKILL).random() * undisturbed.durations[stage]
        struck = strike(tmp_path, stage, delay, signal.SIGKILL)
        assert reused(struck.stdout) >= set(STAGES[: STAGES.index(stage)][:-1]), "what was finished is not done again"
        fell += [stage] if struck.in_time else []
    assert len(fell) >= 5
    done = run(tmp_path)
    assert executed(done.stdout) <= {STAGES[-1]}
    check_whole(tmp_path, undisturbed)
    assert executed(run(tmp_path).stdout) == set()


@pytest.mark.parametrize(("stage", "how"), [("teacher", signal.SIGTERM), ("export", signal.SIGINT)])
def test_a_signal_ends_it_in_one_line(
    tmp_path: Path, undisturbed: Undisturbed, stage: str, how: signal.Signals
) -> None:
    struck = strike(tmp_path, stage, 0.3, how, "--until", stage)
    check_struck(struck, how)
    done = run(tmp_path, "--until", stage)
    assert reused(done.stdout) == set(STAGES[: STAGES.index(stage)])
    check_whole(tmp_path, undisturbed, until=stage)


@pytest.mark.campaign
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("stage", STAGES)
def test_at_random_moments(tmp_path: Path, undisturbed: Undisturbed, stage: str, how: signal.Signals) -> None:
    wanted = KILLS_EACH if how is signal.SIGKILL else 1
    _strike_often(tmp_path, undisturbed, stage, how, wanted, undisturbed.durations[stage], training=False)


@pytest.mark.campaign
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("stage", ["teacher", "control", "student"])
def test_at_random_steps_of_a_training(
    tmp_path: Path, undisturbed: Undisturbed, stage: str, how: signal.Signals
) -> None:
    _strike_often(tmp_path, undisturbed, stage, how, KILLS_EACH, 0.6, training=True)


def _strike_often(
    place: Path,
    undisturbed: Undisturbed,
    stage: str,
    how: signal.Signals,
    wanted: int,
    longest: float,
    *,
    training: bool,
) -> None:
    """So many strikes that are in time, each on a fresh copy of a run that is ready for the stage."""
    before = STAGES[: STAGES.index(stage)]
    ready = place / "ready"
    (ready / "runs").mkdir(parents=True)
    if before:
        run(ready, "--until", before[-1])
    generator = moments(f"{stage} {training}", how)
    fell: Counter[str] = Counter()
    for attempt in range(4 * wanted + 10):  # the machine may be quicker now than it was
        folder = copy(ready, place / str(attempt))
        struck = strike(folder, stage, generator.random() * longest, how, "--until", stage, training=training)
        over = struck.code in (0, -how) and f"{stage}: done" in struck.stdout  # it was about to leave
        if not struck.in_time or over:
            fell["too late"] += 1
            continue
        check_struck(struck, how)
        assert reused(struck.stdout) == set(before)
        finished = _finished(folder, stage)
        done = run(folder, "--until", stage)
        assert reused(done.stdout) >= set(before)
        assert executed(done.stdout) <= {stage}
        assert not (finished and executed(done.stdout)), "it was finished, and was done again"
        check_whole(folder, undisturbed, until=stage)
        fell["continued" if "continuing at step" in done.stdout else "finished" if finished else "anew"] += 1
        if fell.total() - fell["too late"] == wanted:
            break
    assert fell.total() - fell["too late"] == wanted
    _record(stage, how, training, fell)


def _finished(folder: Path, stage: str) -> bool:
    return (folder / "runs/tiny/manifest.json").exists() and stage in entries(folder)


def _record(stage: str, how: signal.Signals, training: bool, fell: Counter[str]) -> None:
    """One line a case, for docs/reliability.md."""
    case = {"stage": stage, "signal": how.name, "training": training}
    with Path("campaign.jsonl").open("a") as file:
        file.write(json.dumps({**case, **fell}) + "\n")
