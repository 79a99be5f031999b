"""What a training sees of an image, and how images become a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from frs.data.coco import CocoDataset, CocoImage
from frs.data.resize import Pixels, Placed, Resized, ShortestEdge, padded
from frs.data.transforms import Augment
from frs.detectors.base import Targets
from frs.edge.image import letterbox
from frs.errors import DataError


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, H, W) uint8 RGB, channels-last; targets: their objects; image_ids: of the annotations, for messages."""

    images: Tensor
    targets: Targets
    image_ids: tuple[int, ...]

    def split(self, parts: int) -> list[Batch]:
        """Into smaller ones of the same size each, in order; Raises ValueError unless `parts` divides the number of images."""
        if len(self.images) % parts:
            raise ValueError(f"{len(self.images)} images in {parts} equal parts")
        size = len(self.images) // parts
        places = [slice(i, i + size) for i in range(0, len(self.images), size)]
        return [
            Batch(self.images[place], self.targets.map(itemgetter(place)), self.image_ids[place]) for place in places
        ]

    def pin_memory(self) -> Batch:
        """In memory from which a GPU copies by itself; torch's loader calls it."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.map(Tensor.pin_memory))


@dataclass(frozen=True)
class Sample:
    """One augmented image: pixels (H, W, 3), boxes (n, 4) xyxy in its pixels, labels (n,), crowd (n,)."""

    image: Pixels
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    image_id: int


class Samples(Dataset["Sample | DataError"]):
    """Indexed by (epoch, number of the image), which decide with the seed alone what comes.

    height, width: of the letterbox; shortest_edge: takes its place. keep_bytes: images that fit in it are decoded once. An
    error is returned: raised in a worker, it would arrive with the worker's traceback for a message.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        images: list[CocoImage],
        *,
        height: int,
        width: int,
        shortest_edge: ShortestEdge | None,
        seed: int,
        augment: Augment,
        keep_bytes: int,
    ) -> None:
        self.dataset = dataset
        self.images = images
        self.height, self.width = height, width
        self.shortest_edge = shortest_edge
        self.seed = seed
        self.augment = augment
        self.kept: dict[int, tuple[Pixels, Placed]] = {}
        self.keeps = sum(3 * h * w for h, w in map(self._lasting_size, images)) <= keep_bytes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        epoch, index = key
        record = self.images[index]
        generator = np.random.default_rng((self.seed, epoch, index))
        try:
            pixels, placed = self._lasting(index)
        except DataError as error:
            return error
        edge = self.shortest_edge
        if edge is not None and not edge.fixed:
            pixels, placed = edge(pixels, edge.draw(generator))
        pixels, boxes, kept = self.augment(pixels, placed.to_input(record.boxes), generator)
        return Sample(pixels, boxes, record.labels[kept], record.crowd[kept], record.id)

    def _lasting(self, index: int) -> tuple[Pixels, Placed]:
        """What of an image is the same in every epoch: scaled, or as decoded where its size is drawn."""
        found = self.kept.get(index)
        if found is None:
            found = self._scaled(self.dataset.load(self.images[index]))
            if self.keeps:
                self.kept[index] = found
        return found

    def _scaled(self, image: Pixels) -> tuple[Pixels, Placed]:
        edge = self.shortest_edge
        if edge is None:
            return letterbox(image, self.height, self.width)
        if edge.fixed:
            return edge(image, edge.short_sides[0])
        return image, Resized(*image.shape[:2], *image.shape[:2])

    def _lasting_size(self, image: CocoImage) -> tuple[int, int]:
        edge = self.shortest_edge
        if edge is None:
            return self.height, self.width
        return edge.size(image.height, image.width, edge.short_sides[0]) if edge.fixed else (image.height, image.width)


@dataclass(frozen=True)
class Collate:
    """Samples -> a batch, as large as its largest image; multiple: what its sides are multiples of.

    sized: tell the images' own sizes, beyond which is padding; else all of it counts as image.
    """

    multiple: int = 1
    sized: bool = False

    def __call__(self, made: list[Sample | DataError]) -> Batch | DataError:
        samples: list[Sample] = []
        for each in made:
            if isinstance(each, DataError):
                return each
            samples.append(each)
        images, sizes = self._stacked([sample.image for sample in samples])
        targets = _targets(samples)
        if self.sized:
            targets = replace(targets, sizes=sizes)
        if get_worker_info() is not None:
            # Here a full shared memory is an error. Left to the queue, it is one in a thread that nobody hears, and a hang.
            share: Callable[[Tensor], Tensor] = Tensor.share_memory_  # torch has no types for it
            images, targets = share(images), targets.map(share)
        return Batch(images, targets, tuple(sample.image_id for sample in samples))

    def _stacked(self, images: list[Pixels]) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), and (B, 2) heights and widths without padding."""
        sizes = np.array([image.shape[:2] for image in images])
        height, width = (int(side) for side in sizes.max(axis=0))
        stacked = np.zeros((len(images), *padded(height, width, self.multiple), 3), dtype=np.uint8)
        for place, image in zip(stacked, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        return torch.from_numpy(stacked).permute(0, 3, 1, 2), torch.from_numpy(sizes)


def _targets(samples: list[Sample]) -> Targets:
    most = max(len(sample.boxes) for sample in samples)
    count = len(samples)
    boxes = torch.zeros(count, most, 4)
    labels = torch.zeros(count, most, dtype=torch.int64)
    valid = torch.zeros(count, most, dtype=torch.bool)
    ignore = torch.zeros(count, most, dtype=torch.bool)
    for i, sample in enumerate(samples):
        n = len(sample.boxes)
        boxes[i, :n] = torch.from_numpy(sample.boxes)
        labels[i, :n] = torch.from_numpy(sample.labels)
        crowd = torch.from_numpy(sample.crowd)
        valid[i, :n], ignore[i, :n] = ~crowd, crowd
    return Targets(boxes, labels, valid, ignore)
