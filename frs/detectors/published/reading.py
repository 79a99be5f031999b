"""What both libraries' loaders need: the file, the facts that tensors do not tell, and the account of every tensor."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frs.detectors.base import Detector
from frs.detectors.build import build_detector
from frs.detectors.spec import DetectorSpec
from frs.detectors.weights import as_state_dict, load_strictly, read_state_dict
from frs.errors import WeightsError

Log = Callable[[str], None]
"""Takes a line about what was assumed or left out."""

log: Log = logging.getLogger("frs.detectors.published").info
COUNTER = "num_batches_tracked"
"""A BatchNorm's, which torchvision's frozen ones have not, and which changes no output."""


@dataclass(frozen=True)
class Facts:
    """What a state dict does not tell; None: what the file or else the library's usual model says.

    norm_eps: epsilon of the backbone's BatchNorms; backbone_style, channel_order, pixel_mean and pixel_std: see
    `DetectorSpec`; classes: names in the order of the outputs, without a background.
    """

    norm_eps: float | None = None
    backbone_style: str | None = None
    channel_order: str | None = None
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None

    def over(self, file: Facts, usual: Facts, source: str, log: Log) -> dict[str, Any]:
        """These, else the file's, else the usual ones, as keyword arguments; each is logged with where it comes from."""
        settled: dict[str, Any] = {}
        for field in fields(self):
            choices = (("given", self), ("of the file", file), ("not in the file, so the usual", usual))
            for why, facts in choices:
                value = getattr(facts, field.name)
                if value is not None:
                    settled[field.name] = value
                    shown = f"{len(value)} names" if field.name == "classes" else value
                    log(f"{source}: {field.name} {shown} ({why})")
                    break
        return settled


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors, and what else it says; values of `meta` are plain data."""

    source: str
    state: dict[str, Tensor]
    meta: Mapping[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises WeightsError for a tensor that is not there."""
        if name not in self.state:
            raise WeightsError(f"{self.source}: there is no tensor {name}, so this is no whole detector; give its file")
        return tuple(self.state[name].shape)

    def modules(self, prefix: str) -> list[str]:
        """Names of the modules with a weight that begin so, in the order of the numbers in them."""
        found = {name.removesuffix(".weight") for name in self.state if name.startswith(prefix)}
        weighted = [name for name in found if f"{name}.weight" in self.state]
        return sorted(weighted, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def read_checkpoint(path: Path, recipe: str = "") -> Checkpoint:
    """Read without running code from it; recipe: what to do about a file that holds more than plain data.

    Raises WeightsError for a file that is missing, damaged, or holds anything else.
    """
    if path.suffix == ".safetensors" or not recipe:
        return Checkpoint(str(path), read_state_dict(path), {})
    try:
        with path.open("rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        what = f"objects of {foreign[1]}" if foreign else "what is no plain data"
        raise WeightsError(f"{path}: holds {what}, which could run code, so it is not read; {recipe}") from None
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises whatever a damaged pickle makes it raise
        raise WeightsError(
            f"{path}: cannot be read as plain tensors ({type(error).__name__}); get the file again"
        ) from None
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    return Checkpoint(str(path), as_state_dict(loaded, str(path)), meta if isinstance(meta, dict) else {})


@dataclass(frozen=True)
class Tower:
    """The convolutions before an output, as a checkpoint has them, and `names`: its modules -> those of a `tower`."""

    depth: int
    channels: int
    normed: bool
    bias: bool
    names: Mapping[str, str]


def read_tower(checkpoint: Checkpoint, prefix: str, ours: str) -> Tower:
    """Raises WeightsError where there is no convolution under that prefix."""
    dimensions = {name: checkpoint.state[f"{name}.weight"].ndim for name in checkpoint.modules(prefix)}
    convolutions = [name for name, count in dimensions.items() if count == 4]
    norms = [name for name, count in dimensions.items() if count == 1]
    if not convolutions:
        raise WeightsError(f"{checkpoint.source}: there are no convolutions {prefix}*, so this is no whole detector")
    step = 3 if norms else 2
    names = {name: f"{ours}.{step * i}" for i, name in enumerate(convolutions)}
    names |= {name: f"{ours}.{step * i + 1}" for i, name in enumerate(norms)}
    return Tower(
        depth=len(convolutions),
        channels=checkpoint.shape(f"{convolutions[0]}.weight")[0],
        normed=bool(norms),
        bias=f"{convolutions[0]}.bias" in checkpoint.state,
        names=names,
    )


def fill(spec: DetectorSpec, checkpoint: Checkpoint, names: Mapping[str, str], log: Log) -> Detector:
    """The detector with the checkpoint's tensors, in evaluation mode.

    names: the checkpoint's modules, tensors, or beginnings of names that end in a dot, to the detector's. Raises
    WeightsError unless every tensor of either is accounted for.
    """
    try:
        spec._check()
        detector = build_detector(spec)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{checkpoint.source}: no detector of ours: {error}") from None
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.state.items():
        ours = _renamed(name, names)
        if ours in tensors:
            raise WeightsError(f"{checkpoint.source}: two tensors are {ours} (one is {name}); give a file with one")
        tensors[ours] = tensor
    counters = {name: zero for name, zero in detector.state_dict().items() if name.endswith(COUNTER)}
    absent = {name: zero for name, zero in counters.items() if name not in tensors}
    if absent:
        log(f"{checkpoint.source}: {len(absent)} of {len(counters)} {COUNTER} are not in the file; set to 0")
    load_strictly(detector, tensors | absent, checkpoint.source)
    log(f"{checkpoint.source}: {spec.family}, {spec.backbone}, {len(spec.classes)} classes, {len(tensors)} tensors")
    return detector.eval()


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name itself where it is not known: `load_strictly` refuses it."""
    module, _, leaf = name.rpartition(".")
    if name in names:
        return names[name]
    if module in names:
        return f"{names[module]}.{leaf}"
    for theirs, ours in names.items():
        if theirs.endswith(".") and name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"(unknown) {name}"
