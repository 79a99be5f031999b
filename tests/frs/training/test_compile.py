"""torch.compile: the same training within rounding, under the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec, build_detector
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.training import DetectionObjective, Recipe, train
from tests.frs.training.test_loop import CPU, Cut, Dead, Silent, loader, objective, weights_after

TOLERANCE = 1e-4
"""Relative to the largest weight of a tensor, after three steps of SGD in float32."""
RECIPE = Recipe(
    epochs=1,
    lr=1e-2,
    seed=5,
    optimizer="sgd",
    compile=True,
    precision="fp32",
    validate_every=1,
    checkpoint_minutes=1e-9,
)


class Backbone(nn.Module):
    """As small as can be: each convolution costs the compiler seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())
        self.c4 = nn.Conv2d(16, 24, 2, stride=2)
        self.c5 = nn.Conv2d(24, 32, 2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        c3 = self.stem(images)
        c4 = self.c4(c3)
        return [c3, c4, self.c5(c4)]


def tiny(small: RetinaNetSpec) -> DetectionObjective:
    made = objective(replace(small, head_depth=0))
    torch.manual_seed(2)
    made.detector.backbone = Backbone()  # type: ignore[assignment]
    return made


def taught(small: RetinaNetSpec) -> DistillationObjective:
    """Whose first step takes the gradient of each loss by itself."""
    student = tiny(small).detector
    torch.manual_seed(3)
    teacher = build_detector(replace(small, head_depth=0))
    return DistillationObjective(student, teacher, DistillationWeights(auto_steps=1, warmup_steps=0))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No compiled kernel is left behind, and none found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.usefixtures("cache")
def test_a_compiled_training_is_the_same_within_rounding_and_resumes_to_the_same_bits(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    plain, _ = weights_after(taught(small), rectangles, replace(RECIPE, compile=False), tmp_path / "plain")
    made = taught(small)
    start = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    seen: list[bool] = []

    def run(scratch: str, watcher: Silent) -> dict[str, Tensor]:
        """One detector for all runs, as what is compiled belongs to it."""
        made.load_state_dict(start)

        def evaluate() -> None:
            seen.append("features" in vars(made.detector))

        train(made, loader(rectangles), RECIPE, CPU, scratch=tmp_path / scratch, watcher=watcher, evaluate=evaluate)
        return {name: tensor.clone() for name, tensor in made.detector.state_dict().items()}

    compiled = counters["stats"]["unique_graphs"]
    whole = run("whole", Silent())
    assert counters["stats"]["unique_graphs"] == compiled + 2  # features and head
    with pytest.raises(Dead):
        run("cut", Cut(3))
    resumed = run("cut", Silent())
    assert seen == [False, False]  # nothing is compiled for what a measurement does
    assert list(whole) == list(plain)
    for name, expected in plain.items():
        difference = (whole[name] - expected).abs().max()
        assert difference <= TOLERANCE * expected.abs().max(), name
        assert torch.equal(whole[name], resumed[name])


def test_a_machine_without_a_compiler_is_told(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from frs.errors import RuntimeMissing
from tests.frs.training.conftest import draw_rectangles
from tests.frs.training.test_compile import RECIPE, tiny
from tests.frs.training.test_loop import weights_after
from frs.data import read_coco
from frs.detectors import RetinaNetSpec
folder = Path(sys.argv[1])
draw_rectangles(folder, 4)
narrow = {"channels": [16, 16, 24, 32]}
small = RetinaNetSpec(("rectangle",), (7,), "resnet18", narrow, fpn_channels=16, levels=3)
try:
    weights_after(tiny(small), read_coco(folder / "annotations.json", folder / "images"), RECIPE, folder / "scratch")
except RuntimeMissing as error:
    print(error)
"""
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.startswith("train.compile is true, and torch.compile fails here (InvalidCxxCompiler: "), (
        done.stderr
    )
    assert done.stdout.endswith("install them, or set it to false\n")
