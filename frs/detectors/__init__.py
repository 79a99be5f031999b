"""Detectors that train, distil and export: one interface, one file per family."""

from frs.detectors.base import (
    Candidates,
    Detector,
    HeadOutputs,
    Targets,
    multiply_accumulates,
    parameter_count,
)
from frs.detectors.build import build_detector, spec_of_family
from frs.detectors.faster_rcnn import FasterRCNN, FasterRCNNSpec
from frs.detectors.fcos import FCOS, FCOSSpec
from frs.detectors.gfl import GFL, GFLSpec
from frs.detectors.pretrained import load_backbone_weights
from frs.detectors.published import from_mmdet, from_torchvision, with_classes
from frs.detectors.retinanet import RetinaNet, RetinaNetSpec
from frs.detectors.spec import DetectorSpec
from frs.detectors.weights import load_detector, save_detector

__all__ = [
    "FCOS",
    "GFL",
    "Candidates",
    "Detector",
    "DetectorSpec",
    "FCOSSpec",
    "FasterRCNN",
    "FasterRCNNSpec",
    "GFLSpec",
    "HeadOutputs",
    "RetinaNet",
    "RetinaNetSpec",
    "Targets",
    "build_detector",
    "from_mmdet",
    "from_torchvision",
    "load_backbone_weights",
    "load_detector",
    "multiply_accumulates",
    "parameter_count",
    "save_detector",
    "spec_of_family",
    "with_classes",
]
