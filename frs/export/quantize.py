"""int8 variants of an exported file, with explicit quantisation (Q/DQ) around its convolutions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from frs.edge.metadata import PRODUCER, GraphMetadata
from frs.export.files import write_atomically


def quantize(source: Path, target: Path, batches: Iterable[npt.NDArray[np.uint8]], *, precision: str) -> None:
    """Quantise the convolutions of an exported file.

    precision: "int8" or "int8+fp16" (for TensorRT, of the fp32 or the fp16 file: symmetric, bias left alone) or "int8-cpu" (for
    ONNX Runtime on CPUs: unsigned asymmetric activations and a quantised bias). batches: (N, 3, H, W) uint8, letterboxed
    training images, N as exported.
    """
    cpu = precision == "int8-cpu"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        made = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)
        try:
            quantize_static(
                source,
                made,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8 if cpu else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": not cpu, "WeightSymmetric": True, "QuantizeBias": cpu},
            )
        finally:
            logging.disable(logging.NOTSET)
        model = onnx.load(made)
    metadata = GraphMetadata.from_properties({entry.key: entry.value for entry in model.metadata_props}, source)
    properties = {**metadata.to_properties(), "precision": f'"{precision}"'}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    model.producer_name, model.producer_version = PRODUCER, metadata.version
    write_atomically(target, model.SerializeToString(deterministic=True))


class _Reader(CalibrationDataReader):
    def __init__(self, batches: Iterable[npt.NDArray[np.uint8]]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(batches)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
