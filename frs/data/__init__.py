"""Data sets in COCO's format; training batches, which need torch, are in `frs.data.loader`."""

from frs.data.batches import evaluation_batches, shortest_edge_batches
from frs.data.check import check_coco, check_images
from frs.data.coco import (
    Category,
    CocoDataset,
    CocoImage,
    coco_text,
    image_files,
    read_coco,
    write_coco,
)
from frs.data.faults import Fault, Kind
from frs.data.resize import ShortestEdge

__all__ = [
    "Category",
    "CocoDataset",
    "CocoImage",
    "Fault",
    "Kind",
    "ShortestEdge",
    "check_coco",
    "check_images",
    "coco_text",
    "evaluation_batches",
    "image_files",
    "read_coco",
    "shortest_edge_batches",
    "write_coco",
]
