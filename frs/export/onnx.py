"""A detector as one ONNX file: opset 18, standard operators, no path of this machine inside."""

from __future__ import annotations

import collections
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError

from frs.detectors.base import Detector
from frs.edge.files import write_atomically
from frs.edge.image import PADDING
from frs.edge.machine import package_versions
from frs.edge.metadata import PRODUCER, GraphMetadata
from frs.edge.predictor import OUTPUTS
from frs.errors import ExportError
from frs.export.graph import DeployedDetector

OPSET = 18
REFUSED = ("NonZero", "NonMaxSuppression", "Loop", "If", "Scan")
"""Shapes that depend on data: TensorRT parses some of them and builds none."""


@dataclass(frozen=True)
class ExportReport:
    """What was written. nodes_before_nms: those that the candidates depend on; nodes: all; bytes: of the file."""

    nodes: int
    nodes_before_nms: int
    operators: dict[str, int]
    bytes: int
    sha256: str


def export_onnx(
    detector: Detector,
    path: Path,
    *,
    height: int,
    width: int,
    batch: int | None = 1,
    precision: str = "fp32",
    candidates: int = 300,
    proposals: int = 300,
    rounds: int = 16,
    detections: int = 100,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
) -> ExportReport:
    """Write the graph of `DeployedDetector`; the same detector and options give the same bytes.

    Input `images`: (N, 3, height, width) uint8; batch: N, None leaves it open. precision: "fp32" or "fp16" (trunk and
    head). Raises ExportError when the network cannot be exported with standard operators and fixed shapes.
    """
    if precision not in ("fp32", "fp16"):
        raise ExportError(f"precision {precision!r}: a graph is exported as fp32 or fp16")
    graph = DeployedDetector(
        detector,
        candidates=candidates,
        proposals=proposals,
        rounds=rounds,
        detections=detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        half=precision == "fp16",
    ).cpu()
    metadata = GraphMetadata(
        classes=tuple(detector.spec.classes),
        category_ids=tuple(detector.spec.category_ids),
        height=height,
        width=width,
        padding=PADDING,
        candidates=candidates,
        rounds=rounds,
        detections=detections,
        score_threshold=float(score_threshold),
        iou_threshold=float(iou_threshold),
        precision=precision,
        version=package_versions([PRODUCER]).get(PRODUCER, "unknown"),
    )
    model = _export(graph, path, height, width, batch)
    before_nms = sum(1 for node in model.graph.node if not _is_selection(node))
    _strip(model)
    model.producer_name, model.producer_version = PRODUCER, metadata.version
    onnx.helper.set_model_props(model, metadata.to_properties())
    operators = collections.Counter(node.op_type for node in _nodes(model.graph))
    _check(model, operators, path)
    data = model.SerializeToString(deterministic=True)
    write_atomically(path, data)
    return ExportReport(
        nodes=operators.total(),
        nodes_before_nms=before_nms,
        operators=dict(sorted(operators.items())),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_metadata(path: Path) -> GraphMetadata:
    """What the file says about itself. Raises ExportError for a file that is no ONNX file or not ours."""
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ExportError(f"{path}: there is no such file; export it, or correct the path") from None
    except DecodeError:
        raise ExportError(f"{path}: not an ONNX file; give one that a run wrote, such as student.onnx") from None
    return GraphMetadata.from_properties({entry.key: entry.value for entry in model.metadata_props}, path)


def _export(graph: DeployedDetector, path: Path, height: int, width: int, batch: int | None) -> Any:
    example = torch.zeros(2 if batch is None else batch, 3, height, width, dtype=torch.uint8)
    dynamic = {"images": {0: torch.export.Dim("batch")}} if batch is None else None
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        # What torch raises here is of no stable type; what a user can do is always the same.
        cause = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(
            f"{path.name}: torch cannot export {type(graph.detector).__name__} at {height} x {width} "
            f"({cause[0] if cause else type(error).__name__}); an input size that is a multiple of the largest stride, or "
            "another backbone, may export"
        ) from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto


def _is_selection(node: Any) -> bool:
    scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
    return any("'selection'" in scope for scope in scopes)


def _nodes(graph: Any) -> Iterator[Any]:
    """Of the graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _strip(model: Any) -> None:
    """Stack traces and names of sources: they hold paths, and differ from one checkout to the next."""
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")


def _check(model: Any, operators: collections.Counter[str], path: Path) -> None:
    foreign = sorted({entry.domain for entry in model.opset_import if entry.domain not in ("", "ai.onnx")})
    refused = sorted({name for name in REFUSED if name in operators})
    if foreign or refused or model.functions:
        raise ExportError(
            f"{path.name}: the graph needs {', '.join(foreign + refused) or 'functions'}, which TensorRT does not build; "
            "choose a backbone without data-dependent shapes"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"{path.name}: the exported graph is not valid ONNX ({error})") from error
