"""Ultralytics' smallest current detector, driven from outside: its command line, in an environment of its own.

Ultralytics is licensed under AGPL-3.0. It is no dependency of this project, none of its code is in this repository, and
nothing here imports it: pip installs it into a folder of its own, and its program `yolo` is a child process that is given
files and writes files. What it makes there (weights, ONNX files) is for measuring and is not distributed.

The model is yolo26n: scale n, the smallest, of YOLO26, the newest family among the YAML files of release 8.4.190. With 80
classes it has 2.41 M parameters as it is exported (2.57 M in training) and 5.5 GFLOPs at 640 px, the least of all detection
models in that release. Fewer parameters have, of older families, yolov8n-ghost (1.86 M, 5.7 GFLOPs), yolov9t (2.09 M, 8.2)
and yolov10n (2.30 M, 6.8); yolo11n and yolo12n have 2.6 M.

Nothing is sent or fetched once it is installed: no telemetry, no integrations, no weights (without AMP there is no model
that checks it), no font, no package.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from benchmarks.study_data import StudyData
from frs.data.coco import CocoImage
from frs.edge.files import sha256_of, write_atomically
from frs.edge.machine import package_versions

MODEL = "yolo26n"
ULTRALYTICS = "ultralytics==8.4.190"
SHARED = ("torch", "torchvision", "numpy", "pillow", "matplotlib", "psutil", "PyYAML", "onnx", "onnxruntime")
"""In the versions that we run, so that none of them makes a difference."""
OTHERS = (
    "opencv-python-headless==5.0.0.93",  # the one that it asks for needs libGL
    "onnxslim==0.1.98",
    "polars==2.1.0",
    "requests==2.34.2",
    "ultralytics-thop==2.2.3",
)
"""The rest of what it and its ONNX export need. The client of its platform, which it asks for too, is left out."""
OFF = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "vscode_msg", "openvino_msg")
"""Settings."""
TRAIN = ("pretrained=False", "device=cpu", "workers=0", "amp=False", "plots=False", "patience=1000000")
"""Where its defaults are not kept: the last, so that early stopping does not shorten the training."""


@dataclass(frozen=True)
class Yolo:
    """An environment with the `yolo` program."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes: one thread, no network, nothing installed, settings inside the folder, none of our packages."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return inherited | {
            "YOLO_CONFIG_DIR": str(self.folder / "settings"),
            "YOLO_AUTOINSTALL": "false",
            "YOLO_OFFLINE": "true",
            "MPLCONFIGDIR": str(self.folder / "settings"),
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *arguments: str) -> list[str]:
        return [str(self.folder / "bin" / "yolo"), *arguments]

    def versions(self) -> dict[str, str]:
        pip = [str(self.folder / "bin" / "pip"), "list", "--format=json", "--disable-pip-version-check"]
        listed = subprocess.run(pip, capture_output=True, check=True, env=self.environment)
        return {each["name"]: each["version"] for each in json.loads(listed.stdout)}


@dataclass(frozen=True)
class Step:
    """A command that went through: what it printed, and how long it took."""

    command: list[str]
    log: str
    seconds: float


@dataclass(frozen=True)
class Trained:
    """weights: of the epoch that scored best on `val`; seconds: its own count, without start and last validation."""

    step: Step
    weights: Path
    seconds: float
    epochs: int
    best_epoch: int


@dataclass(frozen=True)
class Exported:
    step: Step
    path: Path
    params: int


def install(cache: Path) -> Yolo:
    """In a folder of its own under `cache`; once, and again where another version is asked for or it was interrupted."""
    asked = [ULTRALYTICS, *(f"{name}=={version}" for name, version in package_versions(SHARED).items()), *OTHERS]
    yolo = Yolo(cache / ULTRALYTICS.replace("==", "-"))
    ready = yolo.folder / "ready.json"
    if ready.is_file() and json.loads(ready.read_text(encoding="utf-8")) == asked:
        return yolo
    print(f"making {yolo.folder}: some minutes, 6 GB", flush=True)
    shutil.rmtree(yolo.folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    pip = [str(yolo.folder / "bin" / "pip"), "install"]
    run([sys.executable, "-m", "venv", str(yolo.folder)], cache / "venv.log", yolo.environment)
    run([*pip, *asked[1:]], cache / "install.log", yolo.environment)
    run([*pip, "--no-deps", ULTRALYTICS], cache / "install-ultralytics.log", yolo.environment)
    # It looks for Arial, and where there is none in the network, whether or not anything will be drawn.
    (font,) = yolo.folder.glob("lib/python*/site-packages/matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
    (yolo.folder / "settings" / "Ultralytics").mkdir(parents=True)
    shutil.copy(font, yolo.folder / "settings" / "Ultralytics" / "Arial.ttf")
    folders = [f"{kind}_dir={yolo.folder / kind}" for kind in ("datasets", "weights", "runs")]
    settings = yolo.command("settings", *(f"{name}=False" for name in OFF), *folders)
    run(settings, cache / "settings.log", yolo.environment)
    write_atomically(ready, json.dumps(asked).encode())
    return yolo


def write_data(data: StudyData, folder: Path) -> Path:
    """Its data.yaml, with links to the images and a text file of boxes for each, named by the images' ids."""
    shutil.rmtree(folder, ignore_errors=True)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    names: dict[int, str] = {}
    for split, source in splits.items():
        dataset = source.read()
        names = {label: category.name for label, category in enumerate(dataset.categories)}
        images, labels = folder / split / "images", folder / split / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        for image in dataset.images:
            path = dataset.path(image).resolve()
            (images / f"{image.id}{path.suffix}").symlink_to(path)
            (labels / f"{image.id}.txt").write_text("".join(f"{line}\n" for line in box_lines(image)), encoding="utf-8")
    described = {
        "path": str(folder),
        **{split: f"{split}/images" for split in splits},
        "names": names,
        "sha256": {
            split: sha256_of(source.annotations) for split, source in splits.items()
        },  # not read: tells files apart
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return folder / "data.yaml"


def box_lines(image: CocoImage) -> list[str]:
    """`label x y width height`, the centre and the sides in parts of the image's; crowds are left out: it cannot ignore."""
    boxes = image.boxes[~image.crowd].astype(float) / [image.width, image.height, image.width, image.height]
    rows = zip(image.labels[~image.crowd].tolist(), boxes.tolist(), strict=True)
    return [
        f"{label} {(x0 + x1) / 2:.8f} {(y0 + y1) / 2:.8f} {x1 - x0:.8f} {y1 - y0:.8f}"
        for label, (x0, y0, x1, y1) in rows
    ]


def train(yolo: Yolo, folder: Path, data: Path, side: int, seconds: float, seed: int, recipe: Sequence[str]) -> Trained:
    """side: of its square input in training, in pixels; recipe: KEY=VALUE in place of its defaults."""
    _one_thread()
    given = (f"model={MODEL}.yaml", f"data={data}", f"imgsz={side}", f"time={seconds / 3600:.6f}", f"seed={seed}")
    command = yolo.command("detect", "train", *given, *TRAIN, *recipe, *_into(folder, "train"))
    step = _once(yolo, folder, "train", command, data)
    with (folder / "train" / "results.csv").open(encoding="utf-8", newline="") as file:
        epochs = [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    best = max(epochs, key=lambda row: row["metrics/mAP50-95(B)"])
    weights = folder / "train" / "weights" / "best.pt"
    return Trained(step, weights, epochs[-1]["time"], len(epochs), int(best["epoch"]))


def export(yolo: Yolo, folder: Path, name: str, weights: Path, height: int, width: int, *options: str) -> Exported:
    """To `folder/<name>/best.onnx`: fp32, one image a call."""
    copy = folder / name / "best.pt"  # the ONNX file is written beside its weights
    command = yolo.command("export", f"model={copy}", "format=onnx", f"imgsz={height},{width}", "device=cpu", *options)
    step = _once(yolo, folder, name, command, weights, copied=True)
    (count,) = re.findall(r"summary \(fused\).*?([\d,]+) parameters", step.log)
    return Exported(step, copy.with_suffix(".onnx"), int(count.replace(",", "")))


def own_ap(yolo: Yolo, folder: Path, name: str, onnx: Path, data: Path) -> tuple[Step, float]:
    """mAP50-95 in percent, three digits, that `yolo val` finds on `test` with the file."""
    command = yolo.command("detect", "val", f"model={onnx}", f"data={data}", "split=test", "device=cpu", "plots=False")
    step = _once(yolo, folder, name, [*command, *_into(folder, name)], onnx, data)
    (found,) = re.findall(r"^ +all +\d+ +\d+ +\S+ +\S+ +\S+ +(\S+)", step.log, re.MULTILINE)
    return step, 100 * float(found)


def _into(folder: Path, name: str) -> tuple[str, ...]:
    return f"project={folder}", f"name={name}", "exist_ok=True"


def _one_thread() -> None:
    cores = os.cpu_count() or 1
    if cores > 2:
        raise SystemExit(
            f"this machine has {cores} cores, and on more than two Ultralytics trains with a thread for each but one, "
            "whatever it is told; the study's trainings have one thread each: measure on two cores"
        )


def _once(yolo: Yolo, folder: Path, name: str, command: list[str], *sources: Path, copied: bool = False) -> Step:
    """Run it with an empty `folder/<name>`, unless it went through before with the same content of its sources.

    copied: whether they are put into that folder.
    """
    record, log = folder / f"{name}.json", folder / f"{name}.log"
    asked: dict[str, Any] = {"command": command, "sources": [sha256_of(source) for source in sources]}
    done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if {key: done.get(key) for key in asked} != asked:
        record.unlink(missing_ok=True)
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        for source in sources if copied else ():
            shutil.copy(source, folder / name)
        print(f"yolo {name}: {log}", flush=True)
        done = {**asked, "seconds": round(run(command, log, yolo.environment, folder), 1)}
        write_atomically(record, json.dumps(done).encode())
    return Step(command, log.read_text(encoding="utf-8"), done["seconds"])


def run(command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None) -> float:
    """Seconds that it took; what it prints is in `log`. Ends the program where the command fails, with its last lines."""
    start = perf_counter()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder, check=False)
    if done.returncode:
        last = "\n  ".join(log.read_text(encoding="utf-8").strip().splitlines()[-8:])
        raise SystemExit(
            f"{' '.join(command)}\nended with {done.returncode}; it printed this and more, see {log}:\n  {last}"
        )
    return perf_counter() - start
