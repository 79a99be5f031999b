"""Two processes that share a batch do what one does with all of it; whatever ends one of them ends both, with its reason."""

from __future__ import annotations

import json
import math
import operator
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import Pipe, active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import SignalException

from frs.data import CocoDataset
from frs.detectors import RetinaNetSpec, Targets, build_detector
from frs.detectors.gfl import GFLSpec
from frs.detectors.spec import DetectorSpec
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.distributed import average_gradients, averaged, gathered, of_first, rank, world_size
from frs.errors import DataError, TrainingError
from frs.training import DetectionObjective, Objective, Recipe, Terms, train
from frs.training.rank import Rank
from frs.training.ranks import Ranks, _Listener, _one_signal, count_devices, launch
from tests.frs.training.test_loop import CPU, Silent, Told, loader

TWO = Ranks("cpu", 2, 1, None, "test")
# A frozen backbone: its BatchNorm sees no batch, so that two halves are one whole but for rounding. Three steps an epoch.
RECIPE = Recipe(epochs=3, lr=2e-3, seed=5, backbone_lr=0.0, validate_every=2)
STEPS = 9


def detection(spec: DetectorSpec) -> Objective:
    torch.manual_seed(1)
    return DetectionObjective(build_detector(spec))


def distillation(spec: RetinaNetSpec) -> DistillationObjective:
    torch.manual_seed(1)
    student = build_detector(spec)
    teacher = build_detector(replace(spec, fpn_channels=24))
    for detector in (teacher, student):
        nn.init.normal_(detector.get_parameter("class_output.weight"))  # scores that differ from place to place
    return DistillationObjective(student, teacher, DistillationWeights(auto_steps=2, warmup_steps=2))


@dataclass(frozen=True)
class Part:
    """What a process computed of a batch: its terms, their mean over the ranks, the gradients."""

    image_ids: list[int]
    terms: dict[str, float]
    means: dict[str, float]
    gradients: dict[str, Tensor]


def of_a_batch(objective: Objective, data: CocoDataset, step: int) -> Part:
    made = loader(data, rank=rank(), ranks=world_size())
    batch = next(iter(made.epoch(1, 2)))
    terms = objective.eval()(batch.images, batch.targets, step)
    torch.autograd.backward(terms.total)
    average_gradients(objective)
    values = {**terms.parts, "total": terms.total}
    return Part(
        list(batch.image_ids),
        {name: float(value.detach()) for name, value in values.items()},
        {name: float(averaged(value)) for name, value in values.items()},
        {name: each.grad.clone() for name, each in objective.named_parameters() if each.grad is not None},
    )


def batches(spec: RetinaNetSpec, data: CocoDataset) -> dict[str, Part]:
    """Each objective on the same batch; the distilling one while it measures, and afterwards with the weights it found."""
    distilling = distillation(spec)
    measuring = of_a_batch(distilling, data, 0)
    distilling.zero_grad()
    gfl = GFLSpec(spec.classes, spec.category_ids, spec.backbone, spec.backbone_options, 16, spec.levels, head_depth=1)
    return {
        "detection": of_a_batch(detection(spec), data, 0),
        "gfl": of_a_batch(detection(gfl), data, 0),
        "measuring": measuring,
        "distillation": of_a_batch(distilling, data, 7),
    }


def small_change() -> dict[str, Any]:
    """What becomes of a gradient that one rank alone has, of one that none has, of BatchNorm's statistics."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"one": nn.Linear(1, 1), "none": nn.Linear(1, 1), "norm": nn.BatchNorm1d(1, momentum=0.5)})
    if rank() == 0:
        torch.autograd.backward(net["one"](torch.tensor([[6.0]])).sum())
    net["norm"](torch.tensor([[1.0], [3.0]]) if rank() == 0 else torch.tensor([[5.0], [9.0]]))
    average_gradients(net)
    one, norm = net["one"], net["norm"]
    return {
        "one": float(one.weight.grad),  # type: ignore[arg-type]
        "none": net["none"].weight.grad,
        "mean": float(norm.running_mean),  # type: ignore[arg-type]
        "var": float(norm.running_var),  # type: ignore[arg-type]
        "first": of_first(lambda: f"said by {rank()}"),
        "all": gathered(rank()),
    }


def trained(this: Rank, spec: RetinaNetSpec, data: CocoDataset, scratch: Path) -> dict[str, Any]:
    """A whole distillation, with an AP that takes its time."""
    objective = distillation(spec)
    asked = []

    def evaluate() -> float:
        asked.append(objective.detector.training)
        time.sleep(0.2)
        return 12.5

    part = loader(data, rank=rank(), ranks=world_size())
    history = this.train(objective, part, RECIPE, CPU, scratch=scratch, evaluate=evaluate)
    return {
        "state": objective.state_dict(),
        "history": [{**asdict(epoch), "seconds": 0} for epoch in history],
        "asked": asked,
    }


def everything(this: Rank, spec: RetinaNetSpec, data: CocoDataset, folder: Path) -> int:
    torch.set_num_threads(1)
    this.log(f"rank {rank()}")
    found = {
        "batches": batches(spec, data),
        "change": small_change(),
        "trained": trained(this, spec, data, folder / "s"),
    }
    torch.save(found, folder / f"{rank()}.pt")
    return os.getpid()


@dataclass(frozen=True)
class Both:
    """What the two ranks found; what the runner was told and got."""

    first: dict[str, Any]
    second: dict[str, Any]
    said: list[str]
    returned: int


@pytest.fixture(scope="module")
def both(rectangles: CocoDataset, small: RetinaNetSpec, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("both")
    told = Told()
    returned = launch(partial(everything, spec=small, data=rectangles, folder=folder), TWO, told)
    first, second = (torch.load(folder / f"{number}.pt", weights_only=False) for number in (0, 1))
    assert active_children() == []
    return Both(first, second, told.said, returned)


@pytest.mark.parametrize("name", ["detection", "gfl", "measuring", "distillation"])
def test_two_halves_have_the_losses_and_gradients_of_the_whole(
    rectangles: CocoDataset, small: RetinaNetSpec, both: Both, name: str
) -> None:
    whole = batches(small, rectangles)[name]
    first, second = both.first["batches"][name], both.second["batches"][name]
    assert [*zip(first.image_ids, second.image_ids, strict=True)] == [
        *zip(whole.image_ids[::2], whole.image_ids[1::2], strict=True)
    ]
    assert len(first.image_ids) == len(second.image_ids) == 2
    assert first.means == second.means
    assert first.means == pytest.approx(whole.terms, rel=1e-5)
    assert first.terms["box"] != pytest.approx(second.terms["box"], rel=0.05), "halves that differ, or nothing is shown"
    assert first.gradients.keys() == whole.gradients.keys()
    for key, gradient in whole.gradients.items():
        assert torch.equal(first.gradients[key], second.gradients[key])
        torch.testing.assert_close(
            first.gradients[key], gradient, rtol=1e-3, atol=1e-5 * max(1.0, float(gradient.norm()))
        )


def test_a_half_by_itself_would_be_divided_by_something_else(
    rectangles: CocoDataset, small: RetinaNetSpec, both: Both
) -> None:
    """The mean of what each would have found alone is another number: without the exchange the tests above would fail."""
    whole = next(iter(loader(rectangles).epoch(1, 2)))
    alone: dict[str, float] = {}
    for half in (slice(0, None, 2), slice(1, None, 2)):
        targets = whole.targets.map(operator.itemgetter(half))
        for name, value in distillation(small).eval()(whole.images[half], targets, 0).parts.items():
            alone[name] = alone.get(name, 0.0) + float(value.detach()) / 2
    together = both.first["batches"]["measuring"].means
    assert all(abs(alone[name] / together[name] - 1) > 1e-4 for name in alone), (alone, together)


def test_the_distillation_terms_are_finite_and_not_zero_on_every_rank(both: Both) -> None:
    for found in (both.first, both.second):
        terms = found["batches"]["distillation"].terms
        assert all(math.isfinite(value) for value in terms.values())
        assert terms["frs_features"] > 0
        assert terms["frs_classes"] > 0


def test_auto_measures_the_same_weights_on_every_rank_as_one_process_does(
    rectangles: CocoDataset, small: RetinaNetSpec, both: Both, tmp_path: Path
) -> None:
    first, second = both.first["trained"]["state"], both.second["trained"]["state"]
    assert torch.equal(first["weights"], second["weights"])
    one = distillation(small)
    history = train(one, loader(rectangles), RECIPE, CPU, scratch=tmp_path, watcher=Silent(), evaluate=lambda: 12.5)
    torch.testing.assert_close(first["weights"], one.weights, rtol=1e-4, atol=0)
    for ours, theirs in zip(both.first["trained"]["history"], history, strict=True):
        assert ours["terms"] == pytest.approx(theirs.terms, rel=1e-3)
        assert (ours["epoch"], ours["lr"], ours["AP"]) == (theirs.epoch, theirs.lr, theirs.AP)


def test_every_rank_ends_with_the_same_bits(both: Both) -> None:
    first, second = both.first["trained"], both.second["trained"]
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    assert first["history"] == second["history"]


def test_the_first_rank_alone_measures_and_talks(both: Both) -> None:
    assert both.first["trained"]["asked"] == [False]
    assert both.second["trained"]["asked"] == []
    assert both.said == ["rank 0"]
    assert both.returned != os.getpid()


def test_what_is_exchanged_beside_gradients(both: Both) -> None:
    expected = {"one": 3.0, "none": None, "first": "said by 0", "all": [0, 1]}
    # Running statistics begin at 0 and 1; the halves' means are 2 and 7, their (unbiased) variances 2 and 8.
    assert both.first["change"] == both.second["change"] == {**expected, "mean": 2.25, "var": 3.0}


@dataclass(frozen=True)
class Disturbed:
    """A training in which something happens to the second rank, in the middle of its fifth step."""

    happens: Callable[[Terms], Terms]
    spec: RetinaNetSpec
    data: CocoDataset
    scratch: Path

    def __call__(self, this: Rank) -> dict[str, Any]:
        torch.set_num_threads(1)
        happens = self.happens

        class Struck(DistillationObjective):
            def forward(self, images: Tensor, targets: Targets, step: int) -> Terms:
                terms: Terms = super().forward(images, targets, step)
                return happens(terms) if (rank(), step) == (1, 4) else terms

        objective = distillation(self.spec)
        objective.__class__ = Struck
        part = loader(self.data, rank=rank(), ranks=world_size())
        history = this.train(objective, part, RECIPE, CPU, scratch=self.scratch, evaluate=lambda: 12.5)
        return {"state": objective.state_dict(), "epochs": len(history)}


def nothing(terms: Terms) -> Terms:
    return terms


def signalled(terms: Terms) -> Terms:
    os.kill(os.getpid(), signal.SIGTERM)
    return terms


def killed(terms: Terms) -> Terms:
    os.kill(os.getpid(), signal.SIGKILL)
    return terms


def not_finite(terms: Terms) -> Terms:
    return replace(terms, parts={**terms.parts, "box": terms.parts["box"] * math.nan})


def unreadable(_: Terms) -> Terms:
    raise DataError("7.png is no picture")


def left_behind(scratch: Path) -> dict[str, int]:
    """What the checkpoint holds."""
    made = torch.load(scratch / "checkpoint.pt", weights_only=True)
    return {"step": made["step"], "epochs": len(made["history"])}


def test_a_signal_to_one_ends_all_after_the_same_step_and_two_or_one_go_on(
    rectangles: CocoDataset, small: RetinaNetSpec, both: Both, tmp_path: Path
) -> None:
    work = Disturbed(signalled, small, rectangles, tmp_path / "scratch")
    with pytest.raises(TrainingError) as stopped:
        launch(work, TWO, Silent())
    assert "was told to stop (SIGTERM); the same command continues" in str(stopped.value)
    assert active_children() == []
    assert left_behind(work.scratch) == {"step": 5, "epochs": 1}
    undisturbed = both.first["trained"]["state"]

    alone = distillation(small)
    told = Told()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "checkpoint.pt").write_bytes((work.scratch / "checkpoint.pt").read_bytes())
    train(alone, loader(rectangles), RECIPE, CPU, scratch=copy, watcher=told)
    assert told.said == ["continuing at step 5 (epoch 2)"]
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, undisturbed[name], rtol=1e-2, atol=1e-4)

    told = Told()
    resumed = launch(replace(work, happens=nothing), TWO, told)
    assert told.said == ["continuing at step 5 (epoch 2)"]
    assert resumed["epochs"] == 3
    assert all(torch.equal(value, undisturbed[name]) for name, value in resumed["state"].items())


def test_a_rank_that_is_killed_is_named_and_takes_the_others_with_it(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as died:
        launch(Disturbed(killed, small, rectangles, tmp_path), TWO, Silent())
    said = str(died.value)
    assert said.startswith("rank 1 of 2 (process ")
    assert said.endswith(
        ") was killed by SIGKILL; if memory ran out, lower train.batch or train.workers; the same command continues"
    )
    assert active_children() == []
    assert left_behind(tmp_path) == {"step": 3, "epochs": 1}


def test_a_term_that_is_not_finite_on_one_rank_stops_all(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as error:
        launch(Disturbed(not_finite, small, rectangles, tmp_path), TWO, Silent())
    path = tmp_path / "not_finite.json"
    assert str(error.value) == (
        f"step 4: not finite: box; lower train.lr, or look at the boxes of the batch's images, whose ids are in {path}. "
        "The training is saved up to step 3"
    )
    drawn = [batch.image_ids for batch in loader(rectangles).epoch(1)]
    assert tuple(json.loads(path.read_text())["image_ids"]) == drawn[4 - 3]
    assert active_children() == []


def test_an_error_of_one_rank_is_the_errors_own_words(
    rectangles: CocoDataset, small: RetinaNetSpec, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"^7\.png is no picture$"):
        launch(Disturbed(unreadable, small, rectangles, tmp_path), TWO, Silent())
    assert active_children() == []


def _wait() -> None:
    """As the launcher does: with an open ear."""
    for _ in range(600):
        time.sleep(0.1)


def test_a_console_that_is_gone_ends_the_training() -> None:
    class Gone(Silent):
        def update(self, done: float, total: float, **figures: float | str) -> None:
            raise BrokenPipeError

    pipes = [Pipe(duplex=False)]
    listener = _Listener(pipes, Gone())

    def tell() -> None:
        pipes[0][1].send(("update", (1, 2, {})))  # the signal may come before this returns
        _wait()

    with listener, _one_signal(), pytest.raises(SignalException):
        tell()
    assert isinstance(listener.error, BrokenPipeError)


def test_a_batch_is_shared_out_equally_or_not_at_all(rectangles: CocoDataset) -> None:
    whole = [batch.image_ids for batch in loader(rectangles).epoch(3)]
    parts = [[batch.image_ids for batch in loader(rectangles, rank=r, ranks=4).epoch(3)] for r in range(4)]
    assert [sum(ids, ()) for ids in zip(*parts, strict=True)] == whole
    resumed = [batch.image_ids for batch in loader(rectangles, rank=2, ranks=4).epoch(3, 1)]
    assert resumed == parts[2][1:]
    with pytest.raises(
        TrainingError, match=r"^train\.batch is 4, which 3 processes cannot share equally; make it a multiple of 3"
    ):
        loader(rectangles, ranks=3)


def test_auto_is_one_process_on_a_cpu_and_one_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_devices("auto", "cpu") == 1
    assert count_devices(3, "cpu") == 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert count_devices("auto", "cuda") == 2
    with pytest.raises(TrainingError, match=r"^train\.devices is 3, but torch sees 2 GPUs here"):
        count_devices(3, "cuda")
