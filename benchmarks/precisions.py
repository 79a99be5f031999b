"""Every precision of a run's student against its fp32 teacher in ONNX Runtime on the CPU, side by side, with the AP of each.

    python benchmarks/precisions.py runs/quickstart [--images FOLDER] [--runs 200] [--threads N] [--json FILE]

The run must have finished: AP is that of its report.json, on its validation images. Timed by `frs.edge.latency`: a process
for each file, in turn, in short blocks. A factor above 1 means that the file is so many times as fast as the teacher; end to
end (letterbox, inference, boxes) and for the inference alone. On a machine that does anything else the factors mean little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frs.edge.latency import Artifact, profile_artifacts
from frs.edge.machine import available_cores, cpu_model

SUFFIXES = (".jpg", ".jpeg", ".png")
FILES = {
    ("teacher", "fp32"): "teacher.onnx",
    ("student", "fp32"): "student.onnx",
    ("student", "fp16"): "student.fp16.onnx",
    ("student", "int8"): "student.int8.onnx",
    ("student", "int8+fp16"): "student.int8-fp16.onnx",
    ("student", "int8-cpu"): "student.int8-cpu.onnx",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A run's precisions in ONNX Runtime, against the fp32 teacher.")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--images", type=Path, help="a folder of photographs; else the run's own pictures")
    parser.add_argument("--runs", type=int, default=200, help="timed runs of each file, at least")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which each file is timed, at least")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not (options.run / "report.json").is_file():
        parser.error(f"{options.run} has no report.json; give the folder of a run that has finished")
    rows = list(compare(options))
    print(f"{cpu_model()}, {options.threads} threads, ONNX Runtime")
    print(f"{'file':20} {'AP':>6} {'end to end, ms':>16} {'inference, ms':>15} {'x teacher':>10} {'x, inference':>13}")
    for row in rows:
        ap = "-" if row["AP"] is None else f"{row['AP']:.2f}"
        print(
            f"{row['model'] + ' ' + row['precision']:20} {ap:>6} {row['p50_ms']:16.2f} {row['infer_ms']:15.2f} "
            f"{row['times_teacher']:10.2f} {row['times_teacher_infer']:13.2f}"
        )
        for warning in row["warnings"]:
            print(f"  ! {warning}")
    if options.json:
        described = {"device": cpu_model(), "threads": options.threads, "run": options.run.name, "files": rows}
        options.json.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The teacher's row first."""
    accuracy = json.loads((options.run / "report.json").read_text(encoding="utf-8"))["accuracy"]
    scored = {(row["model"], row["precision"]): row["AP"] for row in accuracy if row["runtime"] == "onnxruntime"}
    artifacts = [
        Artifact(model, precision, "onnxruntime", options.run / name)
        for (model, precision), name in FILES.items()
        if (options.run / name).is_file()
    ]
    images = sorted(path for path in (options.images or options.run / "pictures").iterdir() if path.suffix in SUFFIXES)
    profiles = profile_artifacts(
        artifacts, images[:8], runs=options.runs, seconds=options.seconds, threads=options.threads
    )
    teacher = profiles[0]
    for profile in profiles:
        total, infer = profile["latency_ms"]["p50"], profile["stages_ms"]["infer"]
        yield {
            "model": profile["model"],
            "precision": profile["precision"],
            "AP": scored.get((profile["model"], profile["precision"])),
            "p50_ms": total,
            "p50_interval_ms": profile["latency_ms"]["p50_interval"],
            "infer_ms": infer,
            "times_teacher": round(teacher["latency_ms"]["p50"] / total, 3),
            "times_teacher_infer": round(teacher["stages_ms"]["infer"] / infer, 3),
            "warnings": profile["warnings"],
        }


if __name__ == "__main__":
    main()
