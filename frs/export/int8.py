"""An exported file on training images: calibrated on some, its int8 variants scored on others, layer group by layer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from frs.export.calibration import Ranges
from frs.export.holdout import HeldOut
from frs.export.layers import Layer, find_layers, first_layers, groups, last_layers, named
from frs.export.quantize import calibrate, quantize
from frs.export.sensitivity import sqnr

Batches = Callable[[], Iterable[npt.NDArray[np.uint8]]]
SQNR_BATCHES = 16
"""Of the calibration images, of which sums are taken over every place of every map: many more change no digit."""


@dataclass(frozen=True)
class Sensitivity:
    """What each part of a file costs when it alone is quantised.

    by: "AP" where the groups were scored, else "sqnr"; why: how that was chosen. drops: name of the group -> AP that the
    held-out images lose, percent; None where groups were not scored. sqnr: name of the layer -> dB, None without noise.
    """

    by: str
    why: str
    drops: dict[str, float] | None
    sqnr: dict[str, float | None]


class Exported:
    """A floating-point file from which int8 files are made. batches: (N, 3, H, W) uint8 calibration images, N as exported,
    from the first one at every call; folder: for the files that are only scored; said: told of every score."""

    def __init__(
        self, file: Path, batches: Batches, held: HeldOut, folder: Path, threads: int | None, said: Callable[[], None]
    ) -> None:
        self.file = file
        self._batches = batches
        self._held = held
        self._folder = folder
        self._threads = threads
        self._said = said
        model = onnx.load(file)
        self.layers: tuple[Layer, ...] = find_layers(model)
        self._first, self._last = first_layers(model, self.layers), last_layers(model, self.layers)

    @property
    def groups(self) -> int:
        return len(groups(self.layers))

    @cached_property
    def ranges(self) -> Ranges:
        return calibrate(self.file, self._batches(), threads=self._threads)

    @cached_property
    def _scored(self) -> tuple[float | None, float]:
        started = time.perf_counter()
        return self._score(self.file), time.perf_counter() - started

    @property
    def ap(self) -> float | None:
        """Of the file itself on the held-out images; None where they have no objects."""
        return self._scored[0]

    def asked_for(self, *, first: bool, last: bool, patterns: Sequence[str]) -> frozenset[str]:
        """Names of the layers to be kept. Raises ExportError for a pattern that names none."""
        chosen = named(patterns, [layer.name for layer in self.layers])
        return chosen | (self._first if first else frozenset()) | (self._last if last else frozenset())

    def drop(self, precision: str, keep: frozenset[str]) -> float:
        """AP lost on the held-out images by the file that keeps these layers; only where there is an `ap`."""
        variant = self._folder / "variant.onnx"
        quantize(self.file, variant, self.ranges, precision=precision, keep=keep)
        found = self._score(variant)
        assert self.ap is not None
        assert found is not None
        return self.ap - found

    def sensitivity(self, precision: str, wanted: str, patience: float) -> Sensitivity:
        """wanted: "AP", "sqnr", or "auto": AP unless scoring every group would take longer than `patience` seconds."""
        noise = sqnr(
            self.file, self.ranges, islice(self._batches(), SQNR_BATCHES), precision=precision, threads=self._threads
        )
        parts = groups(self.layers)
        seconds = self._scored[1] * len(parts)
        estimate = f"scoring {len(parts)} groups on the held-out images was estimated at {seconds:.0f} s"
        if self.ap is None:
            return Sensitivity("sqnr", "no held-out image has an object, so there is no AP", None, noise)
        if wanted == "sqnr" or (wanted == "auto" and seconds > patience):
            why = "as configured" if wanted == "sqnr" else f"{estimate}, more than {patience:.0f} s"
            return Sensitivity("sqnr", why, None, noise)
        everything = frozenset(layer.name for layer in self.layers)
        drops = {
            name: self.drop(precision, everything - {layer.name for layer in part}) for name, part in parts.items()
        }
        return Sensitivity("AP", "as configured" if wanted == "AP" else estimate, drops, noise)

    def _score(self, file: Path) -> float | None:
        found = self._held.ap(file)
        self._said()
        return found
