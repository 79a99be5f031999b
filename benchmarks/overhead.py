"""What our runtime costs over the bare `session.run`: letterbox before it, boxes back to the photograph after it.

    python benchmarks/overhead.py --images FOLDER [--size 640] [--seconds 10] [--threads N] [--json FILE]

The student of the quick-start at 640 px in fp32, with random weights: its time does not depend on them. It has no score
threshold, so that it finds as many boxes as the graph can give, and the way back costs the most. Photographs are decoded
beforehand. Whole runs (letterbox, inference, boxes)
and bare ones (`session.run` on pixels made beforehand) alternate run by run, so that both see the same machine; a whole
run's parts are timed besides. The goal: less than 15% of the inference.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import torch

from frs.detectors import build_detector, spec_of_family
from frs.edge.image import letterbox_batch, load_image
from frs.edge.machine import available_cores, cpu_model
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.predictor import OUTPUTS
from frs.edge.timing import median_interval
from frs.export.onnx import export_onnx
from pipeline.loading import load_config

GOAL = 0.15
STUDENT = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SUFFIXES = {".jpg", ".jpeg", ".png"}
BLOCKS = 10
WARMUP_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Our runtime's cost over the bare session.run.")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=8, help="of them, evenly chosen")
    parser.add_argument("--size", type=int, default=640, help="pixels of a side, a multiple of 32")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each photograph")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    torch.manual_seed(0)

    print(f"Quick-start's student, {options.size} px, fp32, {options.threads} threads, {cpu_model()}")
    with tempfile.TemporaryDirectory() as folder:
        session = exported(Path(folder) / "student.onnx", options.size, options.threads)
        photographs = chosen(options.images, options.count)
        rows = [measure(session, path, options.seconds) for path in photographs]
    for row in rows:
        print(
            f"  {row['width']:4} x {row['height']:<4} letterbox {row['letterbox_ms']:.2f}, inference {row['infer_ms']:.2f}, "
            f"boxes {row['boxes_ms']:.2f} ms ({row['detections']} of them): {row['overhead']:.1%} of the bare inference "
            f"({row['bare_ms']:.2f} ms), {row['interval'][0]:.1%} to {row['interval'][1]:.1%}"
        )
    worst, usual = max(row["overhead"] for row in rows), median(row["overhead"] for row in rows)
    print(f"  median of the photographs {usual:.1%}, worst {worst:.1%}; the goal is below {GOAL:.0%}")
    if options.json:
        figures = {"size": options.size, "threads": options.threads, "device": cpu_model(), "photographs": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def exported(path: Path, size: int, threads: int) -> OnnxRuntimeSession:
    config = load_config(STUDENT)
    fields = config.student.detector.model_dump(exclude={"family", "weights"})
    spec = spec_of_family(config.student.detector.family)(classes=("tree",), category_ids=(1,), **fields)
    export_onnx(
        build_detector(spec).eval(),
        path,
        height=size,
        width=size,
        candidates=config.export.candidates,
        score_threshold=0.0,
    )
    return OnnxRuntimeSession(path, threads=threads)


def chosen(folder: Path, count: int) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder}: there is no {', '.join(sorted(SUFFIXES))} in it; give a folder of photographs")
    return [found[i] for i in sorted({round(place) for place in np.linspace(0, len(found) - 1, count)})]


def measure(session: OnnxRuntimeSession, path: Path, seconds: float) -> dict[str, Any]:
    """overhead: letterbox and boxes of a whole run, as a part of the bare run beside it."""
    photograph, info = load_image(path), session.info
    pixels, _ = letterbox_batch([photograph], info.height, info.width)

    def pair() -> tuple[int, int, int, int]:
        """Nanoseconds of letterbox, inference and boxes of a whole run, and of a bare one."""
        start = perf_counter_ns()
        made, (mapping,) = letterbox_batch([photograph], info.height, info.width)
        prepared = perf_counter_ns()
        boxes, _, _, counts = session.run_raw(made)
        inferred = perf_counter_ns()
        mapping.to_original(boxes[0, : counts[0]])
        finished = perf_counter_ns()
        session.session.run(list(OUTPUTS), {"images": pixels})
        return prepared - start, inferred - prepared, finished - inferred, perf_counter_ns() - finished

    repeat(pair, WARMUP_S)
    times = np.array(repeat(pair, seconds)) / 1e6
    before, infer, after, bare = np.median(times, axis=0)
    shares = (times[:, 0] + times[:, 2]) / bare
    return {
        "height": photograph.shape[0],
        "width": photograph.shape[1],
        "letterbox_ms": round(float(before), 3),
        "infer_ms": round(float(infer), 3),
        "boxes_ms": round(float(after), 3),
        "bare_ms": round(float(bare), 3),
        "detections": int(session.run_raw(pixels)[3][0]),
        "overhead": round(float(np.median(shares)), 4),
        "interval": [round(end, 4) for end in median_interval(np.array_split(shares, BLOCKS))],
        "runs": len(times),
    }


def repeat(pair: Callable[[], tuple[int, int, int, int]], seconds: float) -> list[tuple[int, int, int, int]]:
    end = perf_counter() + seconds
    found = [pair() for _ in range(BLOCKS)]
    while perf_counter() < end:
        found.append(pair())
    return found


if __name__ == "__main__":
    main()
