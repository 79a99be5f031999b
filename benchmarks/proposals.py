"""What the number of proposals in the export costs: AP of a trained Faster R-CNN with 1,000 of them and with fewer.

    frs-pipeline run configs/quickstart.yaml --until teacher --set name=proposals \\
        --set 'teacher.detector={family: faster_rcnn, backbone: tf_efficientnet_lite0, weights: package:efficientnet-lite0,
                                 fpn_channels: 64, levels: 4, anchor_scale: 6, roi_channels: 256}' \\
        --set 'student.detector={family: faster_rcnn, backbone: resnet18, levels: 4}'
    python benchmarks/proposals.py runs/proposals [--proposals 50 100 300 1000]

The teacher's reference decode stands beside it, and the latency of the exported file in ONNX Runtime, files in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from frs.data import CocoDataset, evaluation_batches, read_coco
from frs.detectors import load_detector
from frs.edge.machine import available_cores, cpu_model
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.predictor import Predictor
from frs.evaluation import evaluate, predict_dataset
from frs.export.onnx import export_onnx
from frs.export.torch_predictor import TorchPredictor

SIZE = 256
CANDIDATES = 600
"""As the quick-start has it: trees stand close."""


def main() -> None:
    parser = argparse.ArgumentParser(description="AP and latency by the number of proposals.")
    parser.add_argument("run", type=Path, help="folder of a run with a Faster R-CNN teacher, --until teacher")
    parser.add_argument("--proposals", type=int, nargs="+", default=[50, 100, 300, 1000])
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each file")
    options = parser.parse_args()
    torch.set_num_threads(available_cores())
    manifest = json.loads((options.run / "manifest.json").read_text(encoding="utf-8"))
    stored = options.run.parent / manifest["stages"]["data"]["path"] / "outputs"
    data, truth = read_coco(stored / "val.json", stored / "images"), stored / "val.json"
    detector = load_detector(options.run / "teacher.safetensors")
    print(f"{len(data.images)} images, {SIZE} px, {available_cores()} threads, {cpu_model()}")
    print(f"reference decode, 1000 proposals: AP {ap(TorchPredictor(detector, SIZE, SIZE), data, truth):.2f}")
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for number in options.proposals:
            path = Path(folder) / f"{number}.onnx"
            export_onnx(detector, path, height=SIZE, width=SIZE, proposals=number, candidates=CANDIDATES)
            sessions[number] = OnnxRuntimeSession(path)
        milliseconds = timed(sessions, data, options.rounds)
        for number, session in sessions.items():
            print(f"graph, {number} proposals: AP {ap(session, data, truth):.2f}, p50 {milliseconds[number]:.1f} ms")


def ap(predictor: Predictor, data: CocoDataset, truth: Path) -> float:
    found = evaluate(truth, predict_dataset(predictor, evaluation_batches(data, SIZE, SIZE, 1))).AP
    assert found is not None
    return found


def timed(sessions: dict[int, OnnxRuntimeSession], data: CocoDataset, rounds: int) -> dict[int, float]:
    pixels, _, _ = next(iter(evaluation_batches(data, SIZE, SIZE, 1)))
    times: dict[int, list[float]] = {number: [] for number in sessions}
    for turn in range(rounds + 2):
        for number, session in sessions.items():
            started = time.perf_counter()
            session.predict(pixels)
            if turn >= 2:
                times[number].append(1000 * (time.perf_counter() - started))
    return {number: statistics.median(values) for number, values in times.items()}


if __name__ == "__main__":
    main()
