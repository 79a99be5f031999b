"""What a device has and has not: `frs.edge` where nothing is installed but NumPy and Pillow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import frs
from frs.edge.image import letterbox, load_image
from frs.edge.metadata import GraphMetadata
from tests.packages import from_the_index

INSTALLED = ("numpy", "pillow")
METADATA = GraphMetadata(("cat", "dög"), (3, 17), 64, 96, 114, 300, 16, 100, 0.05, 0.5, "fp32", "0.1.0")
CODE = """
import importlib, json, pkgutil, sys
from importlib.util import find_spec
from pathlib import Path
import frs.edge
names = [each.name for each in pkgutil.walk_packages(frs.edge.__path__, "frs.edge.")]
for name in names:
    importlib.import_module(name)
import numpy as np
from frs.edge.image import letterbox, load_image
from frs.edge.metadata import GraphMetadata
from frs.edge.sessions import open_session
from frs.errors import RuntimeMissing
boxed, mapping = letterbox(load_image(Path(sys.argv[1])), 64, 96)
np.save(sys.argv[2], boxed)
try:
    open_session(Path("x.onnx"))
except RuntimeMissing as error:
    said = str(error)
found = GraphMetadata.from_properties(json.loads(sys.argv[3]), Path("x.onnx"))
others = ("torch", "onnx", "onnxruntime", "pydantic", "click", "rich", "yaml", "pycocotools", "cuda", "psutil", "pynvml")
print(json.dumps({
    "modules": names, "scale": mapping.scale, "classes": found.classes, "said": said,
    "importable": [name for name in others if find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment of this machine's Python, with the versions that are installed here."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    needed = [f"{name}=={metadata.version(name)}" for name in INSTALLED]
    from_the_index("--python", folder, "install", "--quiet", "--only-binary=:all:", *needed)
    return folder / "bin" / "python"


def test_the_edge_runtime_where_only_numpy_and_pillow_are(bare_python: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((400, 500)).save(photograph, exif=_turned())
    source = Path(frs.__file__).parents[1]
    arguments = [str(photograph), str(tmp_path / "boxed.npy"), json.dumps(METADATA.to_properties())]
    done = subprocess.run(
        [bare_python, "-s", "-c", CODE, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["importable"] == []
    edge = source / "frs" / "edge"
    assert len(found["modules"]) >= len(list(edge.glob("*.py"))) - 1
    assert {"frs.edge.trt", "frs.edge.ort", "frs.edge.cuda", "frs.edge.latency"} <= set(found["modules"])
    assert found["classes"] == ["cat", "dög"]
    assert "pip install onnxruntime" in found["said"]
    boxed, mapping = letterbox(load_image(photograph), 64, 96)
    assert found["scale"] == mapping.scale == 0.16  # 500 x 400 pixels once it is turned
    np.testing.assert_array_equal(np.load(tmp_path / "boxed.npy"), boxed)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
