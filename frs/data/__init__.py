"""Data sets in COCO's format; training batches, which need torch, are in `frs.data.loader`."""

from frs.data.batches import evaluation_batches
from frs.data.coco import (
    Category,
    CocoDataset,
    CocoImage,
    Fault,
    check_coco,
    image_files,
    read_coco,
    write_coco,
)

__all__ = [
    "Category",
    "CocoDataset",
    "CocoImage",
    "Fault",
    "check_coco",
    "evaluation_batches",
    "image_files",
    "read_coco",
    "write_coco",
]
