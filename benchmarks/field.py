"""Our student beside the field: Ultralytics' smallest current detector with as much data, machine and time.

    FRS_DATA=FOLDER python -m benchmarks.field --dataset bccd --student FILE.safetensors --seconds N [--seed 0]
                                               [--train KEY=VALUE ...] [--work FOLDER] [--env FOLDER]

FRS_DATA names the folder with the data sets (`benchmarks/study_data.py`). N: the seconds that the trainings of our teacher
and of our student took together, with their validations; yolo26n's N seconds hold its validation after each epoch, about a
seventh of them. What was done before (environment, training, exports) is not done again; a row for each file is printed and
appended to benchmarks/results/field.jsonl.

Ultralytics is licensed under AGPL-3.0 and is no part of this project: `benchmarks/yolo.py` says how it is kept apart, which
model this is, and why.

What is equal: training and validation images; input size; N seconds of wall clock on one thread; when timed, ONNX Runtime
with one thread and one image a call; pycocotools on `test`. In its favour: of its epochs the best on `val` is taken, of ours
the last; its 300 best boxes of an image above a score of 0.001 are scored, of ours 100 above 0.05, as the student is shipped;
the non-maximum suppression that its usual file needs is not timed, ours is inside; its clock starts when all is loaded. In
ours: the teacher's backbone has seen ImageNet. Neither yolo26n nor the student has.

The recipe is its own (AdamW at the rate that it computes, mosaics, batches of 16), which is made for more data: it updates
its weights once in 64 images (`nbs`), three times in an epoch of bccd, and our student 26 times. To be fair to it, measure
it with `--train batch=8 nbs=8` as well, an update every 8 images as in ours, and quote the better of the two.

`yolo val` is run on the same files (`own_AP`) to see that we do them justice. It scores boxes that reach beyond their image
as they are, which costs them AP; cut off there (`AP`), as `yolo predict` and our runtime do it, they fare better. Scored by
us as they are (`unclipped_AP`), its figure must come out, or there is a warning.

Two files are made of one training: what `yolo export` writes by default in this release (`yolo26n`: the one-to-many head,
non-maximum suppression left to the caller), and the head that needs none (`yolo26n end-to-end`, by `nms=False`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from benchmarks import yolo
from benchmarks.study_data import StudyData, datasets
from benchmarks.yolo_onnx import YoloSession, as_input, yolo_batches
from frs.data import evaluation_batches
from frs.detectors import load_detector, parameter_count
from frs.edge.files import sha256_of
from frs.edge.machine import cpu_model, package_versions
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.timing import Milliseconds, median_interval, warm_up
from frs.errors import FrsError
from frs.evaluation import Row, evaluate, predict_dataset
from frs.export.onnx import export_onnx
from stages.common import cache_folder

RESULTS = Path(__file__).parent / "results" / "field.jsonl"
FILES = {"": (), " end-to-end": ("nms=False",)}
"""Options of `yolo export`, by what they add to the method's name."""
CANDIDATES = {"": 300, ", 1000 candidates": 1000}
"""`export.candidates` of our files, by what they add to the method's name: the default, and as many as a level has in torch."""
AGREE = 1.0
"""AP by which our scoring of its boxes as they are and its own may differ."""
THREADS = 1
TIMED_S = 30.0
BLOCKS = 12
IMAGES = 8
VERSIONS = ("torch", "onnx", "onnxruntime", "pycocotools", "numpy", "pillow")


@dataclass(frozen=True)
class Candidate:
    """about: what its row says besides measurements; found: in `test`; infer: once, on one of `IMAGES` photographs."""

    about: dict[str, Any]
    found: list[Row]
    infer: Callable[[int], object]


def main() -> None:
    cache = cache_folder() / "field"
    parser = argparse.ArgumentParser(description="Our student beside Ultralytics' smallest current detector.")
    parser.add_argument("--dataset", required=True, choices=("bccd", "cards"))
    parser.add_argument("--student", type=Path, required=True, help="its .safetensors")
    parser.add_argument(
        "--seconds", type=float, required=True, help="of training: our teacher's and student's together"
    )
    parser.add_argument("--seed", type=int, default=0, help="of its training; the student's")
    parser.add_argument("--train", nargs="+", default=[], metavar="KEY=VALUE", help="in place of its recipe's defaults")
    parser.add_argument("--work", type=Path, default=cache / "work", help="for its data, weights, files and logs")
    parser.add_argument("--env", type=Path, default=cache, help="for the environment that it is installed in")
    options = parser.parse_args()
    if "FRS_DATA" not in os.environ:
        parser.error("FRS_DATA must name the folder with the data sets bccd and cards")
    try:
        data = datasets(Path(os.environ["FRS_DATA"]), options.work.absolute() / "splits")[options.dataset]
        rows = measure(options, data)
    except FrsError as error:
        raise SystemExit(str(error)) from None
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(
        f"{options.dataset}, test, seed {options.seed}, {options.seconds:.0f} s of training, {cpu_model()}, one thread"
    )
    print("\n".join(table(rows)))


def measure(options: argparse.Namespace, data: StudyData) -> list[dict[str, Any]]:
    """The student's rows first."""
    folder = options.work.absolute() / "-".join(
        [data.name, f"{options.seconds:g}s", f"seed{options.seed}", *options.train]
    )
    folder.mkdir(parents=True, exist_ok=True)
    # The student first: if it does not fit, that is found out before anything is trained.
    candidates = [*ours(options.student, data, folder, options.seconds), *theirs(options, data, folder)]
    rows = []
    for candidate, blocks in zip(candidates, timed([each.infer for each in candidates]), strict=True):
        accuracy = evaluate(data.test.annotations, candidate.found)
        row: dict[str, Any] = {
            "dataset": data.name,
            "method": candidate.about["method"],
            "seed": options.seed,
            "split": "test",
            "images": accuracy.images,
            "AP": percent(accuracy.AP),
            "AP50": percent(accuracy.AP50),
            "infer_ms": round(float(np.median(np.concatenate(blocks))), 3),
            "infer_interval_ms": [round(end, 3) for end in median_interval(blocks)],
            **candidate.about,
            "height": data.height,
            "width": data.width,
            "threads": THREADS,
            "cpu": cpu_model(),
            "versions": package_versions(VERSIONS),
        }
        rows.append(row)
        if "own_AP" in row and abs(row["own_AP"] - row["unclipped_AP"]) > AGREE:
            print(
                f"! {row['method']}: `yolo val` finds AP {row['own_AP']:.2f}, we {row['unclipped_AP']:.2f} of the same boxes"
            )
    return rows


def ours(student: Path, data: StudyData, folder: Path, seconds: float) -> list[Candidate]:
    """The student as it is shipped, thresholds and Cluster-NMS in the file: a candidate for each of its files."""
    detector, test = load_detector(student), data.test.read()
    classes = tuple(category.name for category in test.categories)
    if detector.spec.classes != classes:
        raise SystemExit(f"{student} detects {detector.spec.classes}, {data.name} has {classes}; give its own student")
    batches = list(evaluation_batches(test, data.height, data.width, 1))
    made = []
    for suffix, count in CANDIDATES.items():
        path = folder / f"student-{count}.onnx"
        report = export_onnx(detector, path, height=data.height, width=data.width, candidates=count)
        session = OnnxRuntimeSession(path, threads=THREADS)
        about = {
            "method": "frs student" + suffix,
            "params": parameter_count(detector),
            "onnx_mb": round(report.bytes / 1e6, 3),
            "nms": "in the file",
            "seconds_trained": seconds,
            "detector": json.loads(detector.spec.to_json()),
            "weights_sha256": sha256_of(student),
        }
        made.append(Candidate(about, predict_dataset(session, batches), inference(session, [b[0] for b in batches])))
    return made


def theirs(options: argparse.Namespace, data: StudyData, folder: Path) -> Iterator[Candidate]:
    """One training, and a candidate for each of its two files."""
    program, test = yolo.install(options.env.absolute()), data.test.read()
    described = yolo.write_data(data, folder / "data")
    side = max(data.height, data.width)
    trained = yolo.train(program, folder, described, side, options.seconds, options.seed, options.train)
    batches = list(yolo_batches(test, data.height, data.width))
    ids = tuple(category.id for category in test.categories)
    for suffix, flags in FILES.items():
        name = "export" + suffix.replace(" ", "-")
        exported = yolo.export(program, folder, name, trained.weights, data.height, data.width, *flags)
        validated, own_ap = yolo.own_ap(program, folder, f"val-{name}", exported.path, described)
        session = YoloSession(exported.path, ids, THREADS)
        unclipped = predict_dataset(session, yolo_batches(test, data.height, data.width, clipped=False))
        commands = [" ".join(step.command) for step in (trained.step, exported.step, validated)]
        about = {
            "method": " ".join([yolo.MODEL + suffix, *options.train]),
            "params": exported.params,
            "onnx_mb": round(exported.path.stat().st_size / 1e6, 3),
            "nms": "none needed" if session.end_to_end else "after the file, not timed",
            "own_AP": round(own_ap, 4),
            "unclipped_AP": percent(evaluate(data.test.annotations, unclipped).AP),
            "seconds_trained": round(trained.seconds, 1),
            "seconds_of_command": trained.step.seconds,
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "commands": [line.replace(str(folder), "WORK").replace(str(program.folder), "ENV") for line in commands],
            "environment": program.versions(),
        }
        pixels = [as_input(images) for images, _, _ in batches[:IMAGES]]
        yield Candidate(about, predict_dataset(session, batches), inference(session, pixels))


def percent(ap: float | None) -> float:
    assert ap is not None  # every class has objects in `test`
    return round(ap, 3)


def inference(session: OnnxRuntimeSession | YoloSession, pixels: Sequence[Any]) -> Callable[[int], object]:
    return lambda i: session.run_raw(pixels[i])


def timed(runs: Sequence[Callable[[int], object]]) -> list[list[Milliseconds]]:
    """Of each, blocks of times. They take turns run by run, on the same photographs, so that all see the same machine."""

    def nanoseconds(run: Callable[[int], object], image: int) -> int:
        start = perf_counter_ns()
        run(image)
        return perf_counter_ns() - start

    for run in runs:
        warm_up(lambda run=run: nanoseconds(run, 0))  # type: ignore[misc]
    times: list[list[int]] = []
    end = perf_counter() + TIMED_S
    while perf_counter() < end:
        times.append([nanoseconds(run, len(times) % IMAGES) for run in runs])
    return [np.array_split(column, BLOCKS) for column in (np.array(times) / 1e6).T]


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':36} {'AP':>6} {'AP50':>6} {'own AP':>7} {'params':>8} {'MB':>6} {'ms':>7} 95% interval"
    for row in rows:
        own = f"{row['own_AP']:.1f}" if "own_AP" in row else "-"
        low, high = row["infer_interval_ms"]
        yield (
            f"{row['method']:36} {row['AP']:6.2f} {row['AP50']:6.2f} {own:>7} {row['params'] / 1e6:6.2f} M "
            f"{row['onnx_mb']:6.2f} {row['infer_ms']:7.2f} {low:.2f} to {high:.2f}"
        )


if __name__ == "__main__":
    main()
