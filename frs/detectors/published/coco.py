"""The classes of COCO, which published checkpoints know unless they say otherwise."""

from __future__ import annotations

from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

COLUMNS: tuple[str, ...] = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
"""torchvision's 91: column = category id, 0 is the background, and ids that COCO does not use are called N/A."""

CATEGORY_IDS = {name: number for number, name in enumerate(COLUMNS) if name not in ("__background__", "N/A")}
"""The 80 names, in COCO's order, and their ids."""


def category_ids(names: tuple[str, ...]) -> tuple[int, ...]:
    """COCO's where all the names are COCO's, else 1, 2, 3, ..."""
    if set(names) <= set(CATEGORY_IDS):
        return tuple(CATEGORY_IDS[name] for name in names)
    return tuple(range(1, len(names) + 1))
