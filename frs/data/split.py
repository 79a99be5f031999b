"""A training and a validation split out of one data set, by iterative stratification (Sechidis et al. 2011) over groups of
identical images."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from frs.data.coco import CocoDataset, CocoImage
from frs.errors import DataError

_ANY = -1
"""The label of every image with an object; an image without one has none."""


def split_dataset(data: CocoDataset, fraction: float = 0.2) -> tuple[CocoDataset, CocoDataset]:
    """(train, val): about `fraction` of the images, and of those of each class, are in val; the images keep their order.

    Files with the same bytes stay together, whatever their names. A class that only one such group has is in train. The
    answer depends on the files' bytes and labels alone. Reads every image file. Raises DataError where no class is on two
    different images, so that nothing could be both learnt and measured.
    """
    groups: dict[str, list[CocoImage]] = defaultdict(list)
    for image in data.images:
        groups[hashlib.sha256(data.path(image).read_bytes()).hexdigest()].append(image)
    labels = {key: _labels(images) for key, images in groups.items()}
    val = _chosen(labels, fraction)
    if not any(labels[key] for key in val):
        raise DataError(
            f"{data.root}: no class is on two different images, so none can be set aside for validation; give more "
            "annotated images, or a validation set of your own"
        )
    held = {image.id for key in val for image in groups[key]}
    return (
        CocoDataset(data.root, tuple(image for image in data.images if image.id not in held), data.categories),
        CocoDataset(data.root, tuple(image for image in data.images if image.id in held), data.categories),
    )


def _labels(images: Iterable[CocoImage]) -> frozenset[int]:
    found = {int(label) for image in images for label in image.labels[~image.crowd]}
    return frozenset(found | {_ANY} if found else ())


def _chosen(labels: dict[str, frozenset[int]], fraction: float) -> set[str]:
    """The groups for val: the rarest label first, each to the split that lacks more of what it should have of it."""
    counts = Counter(label for each in labels.values() for label in each)
    wanted = {label: _share(count, fraction) for label, count in counts.items()}
    lacking = {label: [count - wanted[label], wanted[label]] for label, count in counts.items()}  # [train, val]
    left = set(labels)
    val: set[str] = set()
    while any(labels[key] for key in left):
        remaining = Counter(label for key in left for label in labels[key])
        rarest = min(remaining, key=lambda label: (remaining[label], label))
        for key in sorted(key for key in left if rarest in labels[key]):
            only_one = any(counts[label] == 1 for label in labels[key])
            side = int(lacking[rarest][1] > lacking[rarest][0] and not only_one)
            for label in labels[key]:
                lacking[label][side] -= 1
            left.discard(key)
            if side:
                val.add(key)
    return val | set(sorted(left)[: round(len(left) * fraction)])


def _share(count: int, fraction: float) -> int:
    """How many of a label's groups go to val: one at least, where train keeps one too."""
    return 0 if count < 2 else max(1, round(count * fraction))
