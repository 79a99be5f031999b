"""Why flips and zooms are torchvision's and colours are not: each against numpy or Pillow, side by side in one run.

    python benchmarks/augment.py [--height 800] [--width 1344] [--rounds 40] [--json FILE]

One thread, as in a process that loads images; a photograph of noise whose bytes lie in rows of RGB. Prints the medians in
milliseconds and how many times as fast torchvision is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from frs.data.transforms import _recolour


def main() -> None:
    parser = argparse.ArgumentParser(description="torchvision's augmentations against numpy's and Pillow's.")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--rounds", type=int, default=40, help="timed runs of each")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)

    image = np.random.default_rng(0).integers(0, 256, (options.height, options.width, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    size = [round(1.2 * options.height), round(1.2 * options.width)]
    strength, draws = 0.2, np.array([0.5, 0.5])
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "flip": (lambda: np.ascontiguousarray(image[:, ::-1]), lambda: functional.horizontal_flip(pixels)),
        "scale": (
            lambda: np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)),
            lambda: functional.resize(pixels, size, antialias=True),
        ),
        "colour": (
            lambda: _recolour(image, strength, draws),
            lambda: functional.adjust_contrast(functional.adjust_brightness(pixels, 1.1), 1.1),
        ),
    }
    figures = {}
    for name, (ours, theirs) in pairs.items():
        first, second = medians(ours, theirs, options.rounds)
        figures[name] = {"numpy_or_pillow_ms": first, "torchvision_ms": second, "ratio": first / second}
        print(
            f"{name:7} numpy or Pillow {first:7.3f} ms, torchvision {second:7.3f} ms: {first / second:5.1f} times as fast"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def medians(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Milliseconds of each, in turn, after two rounds that are not counted."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for run, of in zip((ours, theirs), taken, strict=True):
            started = time.perf_counter()
            run()
            of.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken[0][2:]), statistics.median(taken[1][2:])


if __name__ == "__main__":
    main()
