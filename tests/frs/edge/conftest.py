from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from frs.export.onnx import export_onnx
from tests.frs.edge.stand_in import Cuda
from tests.frs.edge.trt_lab import BATCHES, IMAGES, plan_of
from tests.frs.export.lab import busy_detector


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trt")
    detector = busy_detector(IMAGES, boxes=20)
    for name, batch in BATCHES.items():
        export_onnx(detector, folder / f"{name}.onnx", height=64, width=96, batch=batch)
    return {name: folder / f"{name}.onnx" for name in BATCHES}


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    device = Cuda()
    yield device
    if device.live:
        gc.collect()  # a caught exception may still hold its frames
    assert device.live == 0, "not all was given back"


@pytest.fixture
def plans(exported: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: plan_of(file, tmp_path) for name, file in exported.items()}
