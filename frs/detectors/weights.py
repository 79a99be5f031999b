"""Weights in and out, with every tensor accounted for: nothing is skipped, nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from frs.detectors.base import Detector
from frs.detectors.build import build_detector, parse_spec
from frs.errors import WeightsError

SPEC_KEY = "frs.detector"
_SHOWN = 3


def save_detector(path: Path, detector: Detector) -> None:
    """Write a safetensors file with the detector's spec in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    # One key only: safetensors writes several in an order that changes from process to process.
    save_file(tensors, path, metadata={SPEC_KEY: detector.spec.to_json()})


def load_detector(path: Path) -> Detector:
    """The detector that `save_detector` wrote, in evaluation mode.

    Raises WeightsError for a file that is missing, damaged or not ours, and for tensors that do not fit or are not finite.
    """
    tensors, metadata = _read(path)
    if SPEC_KEY not in metadata:
        raise WeightsError(
            f"{path}: a safetensors file, but not one of a detector (no {SPEC_KEY} in its metadata); give a file that a "
            "run wrote, such as teacher.safetensors"
        )
    try:
        detector = build_detector(parse_spec(metadata[SPEC_KEY]))
    except (ValueError, WeightsError) as error:
        raise WeightsError(f"{path}: {error}; it may be of a newer version") from None
    load_strictly(detector, tensors, str(path))
    return detector.eval()


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict in which every name and shape must fit and every number be finite. Raises WeightsError."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise WeightsError(f"{source}: the weights are of another network: {'; '.join(faults)}; give those of this one")
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise WeightsError(
            f"{source}: {len(bad)} tensor{'s hold' if len(bad) > 1 else ' holds'} NaN or infinity (first: {bad[0]}); the "
            "training that wrote it diverged, so give another"
        )
    module.load_state_dict(dict(tensors))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}); give one that a run wrote, or train it again"
        ) from None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a pickled state dict, read without running code from it."""
    if path.suffix == ".safetensors":
        return _read(path)[0]
    try:
        with path.open("rb") as file:
            return as_state_dict(torch.load(file, map_location="cpu", weights_only=True), str(path))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except WeightsError:
        raise
    except Exception as error:  # torch.load raises whatever a damaged pickle makes it raise
        raise WeightsError(
            f"{path}: cannot be read as plain tensors ({type(error).__name__}); save it as a state dict with "
            "torch.save(model.state_dict(), file) or as safetensors"
        ) from None


def as_state_dict(loaded: Any, source: str) -> dict[str, Tensor]:
    """The tensors of what a checkpoint holds: a state dict, or one under `state_dict` or `model`."""
    if isinstance(loaded, dict):
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{source}: holds no state dict (a mapping of names to tensors)")
    return loaded
