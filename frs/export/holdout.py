"""Training images for int8: some to calibrate on, others, which calibration has not seen, to measure its loss on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from frs.data import CocoDataset, CocoImage, evaluation_batches, write_coco
from frs.edge.image import Letterbox
from frs.edge.ort import OnnxRuntimeSession
from frs.evaluation import Row, evaluate, predict_dataset
from frs.export.calibration import share


def divide(data: CocoDataset, calibration: int, holdout: int, *, seed: int) -> tuple[CocoDataset, CocoDataset]:
    """So many images for calibration and so many others that are held out, both chosen at random, in the file's order.

    Where there are fewer images than that they are divided in the same proportion, one at least for each; of a single one
    nothing is held out.
    """
    count = len(data.images)
    if count < calibration + holdout:
        holdout = min(max(round(count * holdout / (calibration + holdout)), 1), count - 1)
        calibration = count - holdout
    order = np.random.default_rng(seed).permutation(count)
    return _of(data, order[:calibration]), _of(data, order[calibration : calibration + holdout])


def _of(data: CocoDataset, places: npt.NDArray[np.int64]) -> CocoDataset:
    return CocoDataset(data.root, tuple(data.images[place] for place in sorted(places)), data.categories)


class HeldOut:
    """Images that many files are scored on, one after the other: decoded and letterboxed once, into `folder`.

    batch: that the files take, or any for files that leave it open; threads: as of `answers`.
    """

    def __init__(
        self, data: CocoDataset, folder: Path, *, height: int, width: int, batch: int, threads: int | None
    ) -> None:
        self._workers, self._threads = share(threads)
        self._annotations = folder / "holdout.json"
        self._places: list[tuple[list[Letterbox], list[CocoImage]]] = []
        if not any(len(image.boxes) for image in data.images):
            return
        write_coco(data, self._annotations)
        shape = (-(-len(data.images) // batch), batch, 3, height, width)
        # On disk: the images of a large input would not all fit into memory.
        self._pixels = np.lib.format.open_memmap(folder / "holdout.npy", "w+", np.uint8, shape)
        for number, (pixels, mappings, images) in enumerate(evaluation_batches(data, height, width, batch)):
            self._pixels[number] = pixels
            self._places.append((mappings, images))

    def ap(self, file: Path) -> float | None:
        """COCO AP of an exported file on the CPU, percent; None where the images have no objects."""
        if not self._places:
            return None
        session = OnnxRuntimeSession(file, threads=self._threads)

        def predict(number: int) -> list[Row]:
            return predict_dataset(session, [(self._pixels[number], *self._places[number])])

        with ThreadPoolExecutor(self._workers) as pool:
            rows = [row for found in pool.map(predict, range(len(self._places))) for row in found]
        return evaluate(self._annotations, rows).AP
