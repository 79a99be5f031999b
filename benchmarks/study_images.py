"""How much of a difference in the study's tables is the choice of images: a bootstrap over them.

    FRS_DATA=... python -m benchmarks.study_images main [--method frs] [--runs-dir runs]

The intervals of `benchmarks.study table` are over seeds, all scored on the same few images. Here the seeds are kept and the
images are drawn anew, 500 times, the same ones for both methods of a pair: printed is AP of each method less the reference's
of the same seed, mean of the seeds, with the 95% percentile interval. The weights are those of `run` in RUNS_DIR; what is not
there is trained.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study import read_rows
from benchmarks.study_data import StudyData, datasets
from benchmarks.study_plan import STUDIES, Study
from benchmarks.study_rows import Job, predict, trained
from frs.edge.files import sha256_of
from frs.errors import FrsError
from frs.evaluation.bootstrap import Matches, resampled
from pipeline.errors import PipelineError

SAMPLES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[name for name, study in STUDIES.items() if study.commit is None])
    parser.add_argument("--method", action="append", help="this one alone; may be repeated")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="that `benchmarks.study run` was given")
    options = parser.parse_args()
    if "FRS_DATA" not in os.environ:
        parser.error("FRS_DATA is not set; give the folder in which bccd/ and cards/ are")
    try:
        data = datasets(Path(os.environ["FRS_DATA"]), options.runs_dir / "study_data")
        print_table(STUDIES[options.study], options.method, list(data.values()), options.runs_dir)
    except (FrsError, PipelineError) as error:
        raise SystemExit(str(error)) from None


def print_table(study: Study, chosen: Sequence[str] | None, data: Sequence[StudyData], runs: Path) -> None:
    columns = [(each, split) for each in data for split in study.splits]
    print(f"| | {' | '.join(f'{each.name}, {split}' for each, split in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    references = [matches(study, study.reference, each, split, runs) for each, split in columns]
    for method in study.methods:
        if method.stage == "teacher" or method.name == study.reference or method.name not in (chosen or [method.name]):
            continue
        cells = [
            gain(theirs, matches(study, method.name, each, split, runs)) if method.on in (None, each.name) else ""
            for (each, split), theirs in zip(columns, references, strict=True)
        ]
        print(f"| {method.shown} | {' | '.join(cells)} |", flush=True)


def gain(theirs: Mapping[int, Matches], its: Mapping[int, Matches]) -> str:
    """By seed; of those that are in both."""
    found = resampled([(theirs[seed], its[seed]) for seed in sorted(its) if seed in theirs], samples=SAMPLES)
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def matches(study: Study, name: str, data: StudyData, split: str, runs: Path) -> dict[int, Matches]:
    """By seed, for every row that the study has."""
    (method,) = (each for each in study.methods if each.name == name)
    made = {}
    for row in read_rows(study):
        if (row["dataset"], row["method"], row["split"]) != (data.name, name, split):
            continue
        job = Job(data, method, row["seed"], row["epochs"] if method.as_long_as else None)
        weights = trained(job, runs)[0].path("weights")
        if sha256_of(weights) != row["weights"]:
            raise SystemExit(f"{job.name}: {weights} are not those of the row, which another machine may have made")
        made[row["seed"]] = Matches.of(data.split(split).annotations, predict(job, weights, split))
    return made


if __name__ == "__main__":
    main()
