"""Does distillation pay? Trains what docs/study.md reports, on real data, and prints its tables.

    FRS_DATA=... python -m benchmarks.study run main [--dataset bccd] [--jobs 2] [--runs-dir runs]
    python -m benchmarks.study table main [--split test] [--parts]

`run` trains what benchmarks/results/<study>.jsonl has no line for yet, by the pipeline's own stages: a teacher for each data
set, once, then every method from every seed, `--jobs` at a time with one thread each. It may be interrupted at any time; the
same command goes on where it stopped, within a training too. A finished training is a line for each split that it is scored
on, with all that is needed to repeat it. What a training says is in RUNS_DIR/<run>.log.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks.study_data import StudyData, datasets
from benchmarks.study_plan import STUDIES, TEACHER, Study
from benchmarks.study_rows import Job, Row, identity, make_rows
from benchmarks.study_tables import markdown, markdown_parts
from frs.errors import FrsError
from pipeline.errors import PipelineError

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what has no line yet")
    table = commands.add_parser("table", help="print the tables")
    for command in (run, table):
        command.add_argument("study", choices=STUDIES)
    run.add_argument("--dataset", help="this one alone")
    run.add_argument("--method", action="append", help="this one alone, and the teacher; may be repeated")
    run.add_argument("--runs-dir", type=Path, default=Path("runs"), help="of the trainings and their store")
    run.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trainings at a time")
    table.add_argument("--split", help="the study's last one if not given")
    table.add_argument("--parts", action="store_true", help="AP by size and by class instead")
    options = parser.parse_args()
    study = STUDIES[options.study]
    if options.command == "table":
        tables = markdown_parts if options.parts else markdown
        print(tables(read_rows(study), study, options.split or study.splits[-1]))
        return
    if study.commit is not None:
        parser.error(f"{study.name} is of options that are no longer there; check out {study.commit} and run it there")
    if "FRS_DATA" not in os.environ:
        parser.error("FRS_DATA is not set; give the folder in which bccd/ and cards/ are")
    chosen = datasets(Path(os.environ["FRS_DATA"]), options.runs_dir / "study_data")
    if options.dataset is not None and options.dataset not in chosen:
        parser.error(f"--dataset {options.dataset}: expected one of {', '.join(chosen)}")
    wanted = [data for name, data in chosen.items() if options.dataset in (None, name)]
    names = [method.name for method in study.methods]
    for name in options.method or ():
        if name not in names:
            parser.error(f"--method {name}: expected one of {', '.join(names)}")
    if options.method:
        study = replace(study, methods=tuple(each for each in study.methods if each.name in options.method))
    try:
        sys.exit(1 if run_study(study, wanted, options.runs_dir, options.jobs) else 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def run_study(study: Study, data: Sequence[StudyData], runs: Path, jobs: int) -> int:
    """How many trainings failed. Teachers first, and last what waits for another method's time."""
    failed = 0
    context = multiprocessing.get_context("spawn")
    for phase in (teachers, the_rest, those_that_wait):
        # A process for each training: nothing of one is left when the next begins.
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            running = {pool.submit(attempt, job, runs, study.splits): job for job in phase(study, data)}
            try:
                failed += gather(study, running)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
    return failed


def gather(study: Study, running: dict[Future[list[Row] | str], Job]) -> int:
    """Write the rows of each training as it ends; how many failed."""
    failed = 0
    for number, each in enumerate(as_completed(running), 1):
        job, made = running[each], each.result()
        if isinstance(made, str):
            failed += 1
            print(f"{job.name}: {made}", file=sys.stderr)
            continue
        append(study, made)
        figures = ", ".join(f"{row['split']} AP {row['AP']:.2f}" for row in made)
        print(f"[{number}/{len(running)}] {job.name}: {figures}", flush=True)
    return failed


def attempt(job: Job, runs: Path, splits: Sequence[str]) -> list[Row] | str:
    """The rows, or what is wrong: an exception with a cause does not come through to another process."""
    try:
        return make_rows(job, runs, splits)
    except (FrsError, PipelineError) as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted"


def teachers(study: Study, data: Sequence[StudyData]) -> Iterator[Job]:
    """Wherever one teaches: one that has its lines may be missing in this machine's store."""
    return (Job(each, TEACHER, 0) for each in data if any(method.stage != "control" for method in study.methods))


def the_rest(study: Study, data: Sequence[StudyData]) -> Iterator[Job]:
    """Seed by seed, so that an interrupted study has whole ones."""
    methods = [method for method in study.methods if method.as_long_as is None and method.stage != "teacher"]
    for seed in range(max((method.seeds for method in methods), default=0)):
        now = [method for method in methods if seed < method.seeds]
        yield from missing(
            study, (Job(each, method, seed) for method in now for each in data if method.on in (None, each.name))
        )


def those_that_wait(study: Study, data: Sequence[StudyData]) -> Iterator[Job]:
    """For as many epochs as last as long as the method that is named took, both with their measurements of AP."""
    rows = read_rows(study)
    for method in study.methods:
        if method.as_long_as is None:
            continue
        for each in data:
            ours = [row for row in rows if row["dataset"] == each.name]
            an_epoch = [row["seconds"] / row["epochs"] for row in ours if row["method"] == study.reference]
            given = [row["seconds"] for row in ours if row["method"] == method.as_long_as]
            if not an_epoch or not given:
                print(
                    f"{each.name}, {method.name}: waits for {study.reference} and {method.as_long_as}", file=sys.stderr
                )
                continue
            epochs = round(mean(given) / mean(an_epoch))
            yield from missing(study, (Job(each, method, seed, epochs) for seed in range(method.seeds)))


def missing(study: Study, jobs: Iterable[Job]) -> Iterator[Job]:
    """Those without a line of the same settings."""
    there = {identity(row) for row in read_rows(study)}
    return (job for job in jobs if any(job.identity(split) not in there for split in study.splits))


def read_rows(study: Study) -> list[Row]:
    path = RESULTS / f"{study.name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(study: Study, rows: Sequence[Row]) -> None:
    """Those that are new."""
    there = {identity(row) for row in read_rows(study)}
    with (RESULTS / f"{study.name}.jsonl").open("a", encoding="utf-8") as file:
        for row in rows:
            if identity(row) not in there:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
