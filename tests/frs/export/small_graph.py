"""Graphs of two layers whose every number can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from frs.edge.metadata import GraphMetadata

WEIGHT = np.array([[1.0, -0.5, 0.25], [0.02, 0.01, -0.03]], dtype=np.float32).reshape(2, 3, 1, 1)
BIAS = np.array([0.5, -1.0], dtype=np.float32)
SECOND = np.array([[0.7, -2.0]], dtype=np.float32).reshape(1, 2, 1, 1)


def two_layers(*, half: bool = False, weight: npt.NDArray[np.float32] = WEIGHT) -> Any:
    """images (1, 3, 2, 2) uint8 -> x = images / 100 -> 1x1 convolution "first", 3 to 2 -> ReLU -> 1x1 "second", 2 to 1 -> sigmoid."""
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=kind),
        helper.make_node("Div", ["pixels", "hundred"], ["x"], name="divide"),
        helper.make_node("Conv", ["x", "detector.first.weight", "detector.first.bias"], ["y"], name="conv_1"),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
        helper.make_node("Conv", ["z", "detector.second.weight"], ["out"], name="conv_2"),
        helper.make_node("Sigmoid", ["out"], ["scores"], name="decode"),
    ]
    values = {
        "hundred": np.array(100.0),
        "detector.first.weight": weight,
        "detector.first.bias": BIAS,
        "detector.second.weight": SECOND,
    }
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("scores", kind, [1, 1, 2, 2])],
        [numpy_helper.from_array(value.astype(number), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = GraphMetadata(("a",), (1,), 2, 2, 114, 1, 1, 1, 0.05, 0.5, "fp16" if half else "fp32", "0")
    helper.set_model_props(model, metadata.to_properties())
    onnx.checker.check_model(model, full_check=True)
    return model
