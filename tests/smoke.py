"""Every recipe of configs/paper through all stages, with a few steps on a few images: `make smoke`.

    python -m tests.smoke [NAME ...]

The images are those of `$FRS_DATA/tiny_coco`, or drawn rectangles where FRS_DATA is not set. Teacher and student are the
recipe's own networks with random weights (its checkpoint cannot be had without a network), smaller images, and as many
steps as fit in minutes on two cores. What it proves is that every part of a recipe meets the next; its AP means nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.frs.training.conftest import draw_rectangles

RECIPES = Path(__file__).parents[1] / "configs" / "paper"
IMAGES = {"train": 16, "val": 8}
TRAINING = {
    "epochs": 2,
    "batch": 4,
    "milestones": [1],
    "warmup_steps": 2,
    "short_side": [128, 160],
    "multiscale": "value",
    "long_side": 224,
    "devices": 1,
    "workers": 0,
}
FINISHED = {0: "finished", 3: "finished, with gates that few steps do not meet"}


def main(names: list[str]) -> int:
    chosen = names or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = subset(folder)
        print(f"Few steps on {IMAGES['train']} images: the AP below means nothing.", flush=True)
        for recipe in chosen:
            started = time.monotonic()
            done = run(recipe, data, folder)
            words = FINISHED.get(done.returncode, f"FAILED with exit code {done.returncode}")
            print(f"{recipe}: {words} in {time.monotonic() - started:.0f} s", flush=True)
            if done.returncode not in FINISHED:
                failed.append(recipe)
                print(done.stdout[-2000:], done.stderr[-3000:], sep="\n", flush=True)
                continue
            print(table(folder / "runs" / recipe / "report.json"), flush=True)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} recipes went through all stages; their AP means nothing.")
    return 1 if failed else 0


def subset(folder: Path) -> dict[str, Any]:
    """The `data` section: the first images with objects of each split of tiny_coco, or of drawn rectangles."""
    source = os.environ.get("FRS_DATA")
    section: dict[str, Any] = {"source": "coco"}
    for split, count in IMAGES.items():
        if source:
            root = Path(source).resolve() / "tiny_coco"
            annotations, images = root / f"annotations/instances_{split}2017.json", root / f"{split}2017"
        else:
            (folder / split).mkdir()
            draw_rectangles(folder / split, count, seed=count)
            annotations, images = folder / split / "annotations.json", folder / split / "images"
        content = json.loads(annotations.read_text(encoding="utf-8"))
        busy = {each["image_id"] for each in content["annotations"]}
        content["images"] = [each for each in content["images"] if each["id"] in busy][:count]
        kept = {each["id"] for each in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        few = folder / f"{split}.json"
        few.write_text(json.dumps(content), encoding="utf-8")
        section[split] = {"annotations": str(few), "images": str(images)}
    return section


def run(recipe: str, data: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line on the recipe's own file, with what a small machine needs changed."""
    path = RECIPES / f"{recipe}.yaml"
    student = yaml.safe_load(path.read_text(encoding="utf-8"))["student"]
    network = {**student["detector"], "weights": None}
    training = {**student["train"], **TRAINING}
    changes = {
        "data": data,
        "input": {"height": 128, "width": 192},
        "teacher": {"detector": {**network, "backbone": "resnet101"}, "train": training},
        "preflight": {},
        "student": {"detector": network, "train": training},
        "distill.warmup_steps": 2,
        "export.score_threshold": 0.0,
        "export.candidates": 300,
        "quantize": {"images": 8, "holdout": 4, "sensitivity": "sqnr"},
        "gates.int8_max_drop": None,  # with weights that have hardly learnt, the search for layers to keep would find all
        "profile": {"runs": 20, "seconds": 0},
        "validation.short_side": 160,
        "validation.long_side": 224,
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path), "--runs-dir", str(folder / "runs"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def table(report: Path) -> str:
    """What was trained and distilled, and the artifacts that were scored."""
    content = json.loads(report.read_text(encoding="utf-8"))
    last = content["training"]["student"][-1]["terms"]
    terms = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
    rows = {f"{row['model']} {row['runtime']} {row['precision']}" for row in content["accuracy"]}
    plans = [engine["proven"] for engine in content["engines"]]
    return f"  student's last epoch: {terms}\n  scored: {', '.join(sorted(rows))}\n  engines: {', '.join(plans)}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
