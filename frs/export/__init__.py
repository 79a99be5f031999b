"""From a detector to what is shipped: the ONNX graph, its parity with torch, TensorRT plans."""

from frs.export.graph import DeployedDetector, Selection
from frs.export.torch_predictor import TorchPredictor

__all__ = ["DeployedDetector", "Selection", "TorchPredictor"]
