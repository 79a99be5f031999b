"""From a trained detector to the files that ship, and how they are held against it."""

from frs.export.engine import EngineReport, build_engine
from frs.export.graph import DeployedDetector
from frs.export.onnx import ExportReport, export_onnx, read_metadata
from frs.export.parity import Parity, parity
from frs.export.torch_predictor import TorchPredictor

__all__ = [
    "DeployedDetector",
    "EngineReport",
    "ExportReport",
    "Parity",
    "TorchPredictor",
    "build_engine",
    "export_onnx",
    "parity",
    "read_metadata",
]
