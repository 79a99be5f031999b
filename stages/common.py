"""What several stages need: the data set, detectors from their configuration, the facts of the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, TreesData
from pipeline.deployment import ExportConfig
from pipeline.detectors import AnyDetector
from pipeline.stage import Context
from pipeline.training import TrainConfig

if TYPE_CHECKING:
    from frs.data import CocoDataset, ShortestEdge
    from frs.detectors import Detector, DetectorSpec
    from frs.edge.predictor import Predictor, Session
    from frs.evaluation import Row

DATA_INPUTS = {
    "train": "data/train",
    "val": "data/val",
    "images": "data/images",
    "image_hashes": "data/image_hashes",
}
VAL_INPUTS = {label: source for label, source in DATA_INPUTS.items() if label != "train"}


def dataset(context: Context, split: str) -> CocoDataset:
    """The "train" or "val" split as the data stage left it."""
    from frs.data import read_coco

    return read_coco(context.inputs[split], images_folder(context.config, split, context.inputs["images"]))


def images_folder(config: Config, split: str, stored: Path) -> Path:
    """Where the images of a split are: in the store, or where the user keeps them."""
    if isinstance(config.data, TreesData):
        return stored
    return config.data.train.images if split == "train" else config.data.val.images


def spec(config: AnyDetector, data: CocoDataset) -> DetectorSpec:
    """The detector that a configuration asks for, with the classes of the data set."""
    from frs.detectors import spec_of_family

    fields = config.model_dump(exclude={"family", "weights"})
    return spec_of_family(config.family)(
        classes=tuple(category.name for category in data.categories),
        category_ids=tuple(category.id for category in data.categories),
        **fields,
    )


def cache_folder() -> Path:
    """Where downloads are kept between runs: `$XDG_CACHE_HOME/frs-pipeline`, or `~/.cache/frs-pipeline`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frs-pipeline"


def shortest_edge(config: TrainConfig) -> ShortestEdge | None:
    """What a training resizes to; None: to the letterbox."""
    from frs.data import ShortestEdge

    if config.resize == "letterbox":
        return None
    return ShortestEdge(config.short_side, config.long_side, config.multiscale)


def predict_split(
    context: Context,
    predictor: Predictor,
    batch: int,
    edge: ShortestEdge | None = None,
    sample: CocoDataset | None = None,
) -> list[Row]:
    """The validation split, or a sample of it, through a predictor, as COCO result rows; letterboxed, or by `edge`."""
    from frs.data import evaluation_batches, shortest_edge_batches
    from frs.evaluation import predict_dataset

    info = predictor.info
    data = dataset(context, "val") if sample is None else sample
    total = len(data.images)
    done = 0

    def batches() -> Any:
        nonlocal done
        for item in (
            evaluation_batches(data, info.height, info.width, batch)
            if edge is None
            else shortest_edge_batches(data, edge, batch)
        ):
            yield item
            done += len(item[2])
            context.progress.update(done, total, images=f"{done}/{total}")

    return predict_dataset(predictor, batches())


def torch_predictor(context: Context, detector: Detector, decode: str) -> Predictor:
    """A detector in torch, with the reference decode or with the exported graph's."""
    from frs.export.torch_predictor import TorchPredictor

    size = context.config.input
    return TorchPredictor(detector, size.height, size.width, decode=decode, **selection(context.config.export))


def batch_of(session: Session, wanted: int) -> int:
    """What a file takes: the batch that is fixed in it, or of what an engine was built for the one nearest to `wanted`."""
    from frs.edge.trt import TensorRTSession

    if session.batch is not None:
        return session.batch
    least, greatest = session.batches if isinstance(session, TensorRTSession) else (1, wanted)
    return min(max(wanted, least), greatest)


def selection(config: ExportConfig) -> dict[str, Any]:
    """How boxes are chosen, in every file and in torch, as keyword arguments."""
    keys = {"candidates", "proposals", "rounds", "detections", "score_threshold", "iou_threshold"}
    return config.model_dump(include=keys)


def version_of(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed, without importing it."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def threads(config: Config) -> int:
    """Of a CPU operator: as configured, or as many as this process may use."""
    return config.runtime.threads or len(os.sched_getaffinity(0))


def training_facts(config: Config) -> Mapping[str, Any]:
    """What a training's result depends on besides its configuration and data."""
    device = config.runtime.device
    if device == "auto":
        device = "cuda" if Path("/dev/nvidia0").exists() else "cpu"
    return {"torch": version_of("torch"), "device": device, "threads": threads(config)}


def runtime_facts(config: Config) -> Mapping[str, Any]:
    """What scores and parity depend on besides the artifacts."""
    return {**training_facts(config), "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu")}


def engine_facts(config: Config) -> Mapping[str, Any]:
    """The same where engines are run too, which only a GPU does."""
    from dataclasses import asdict

    from frs.edge.machine import find_gpu

    gpu = find_gpu()
    here = {} if gpu is None else {"tensorrt": version_of("tensorrt", "tensorrt-rtx", "tensorrt_rtx"), **asdict(gpu)}
    return {**runtime_facts(config), **here}


def write_json(path: Path, value: Any) -> None:
    """Readable, in a stable order of keys, and refusing NaN, which JSON does not know."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def external(files: Mapping[str, Any]) -> Mapping[str, Path]:
    """Those of the values that are files, for `Stage.external`."""
    return {label: value for label, value in files.items() if isinstance(value, Path)}
