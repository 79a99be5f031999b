from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from frs.data import CocoDataset
from frs.data.loader import TrainingLoader
from frs.data.transforms import Augment
from frs.detectors import RetinaNet, RetinaNetSpec, build_detector
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.training import DetectionObjective, Device
from frs.training.preflight import probe

CPU = Device("cpu", 1, bf16=False)
NEEDED = {"frs_features": ("detector", "adapters"), "frs_classes": ("detector",)}


def loader(data: CocoDataset, batch: int = 4) -> TrainingLoader:
    return TrainingLoader(
        data, height=64, width=64, batch=batch, seed=0, augment=Augment(), drop_empty=False, workers=0
    )


def distillation(small: RetinaNetSpec) -> tuple[DistillationObjective, RetinaNet]:
    torch.manual_seed(0)
    student, teacher = build_detector(small), build_detector(replace(small, fpn_channels=24))
    assert isinstance(teacher, RetinaNet)
    return DistillationObjective(student, teacher, DistillationWeights(1.0, 1.0, warmup_steps=0)), teacher


def test_a_sound_step_has_terms_and_gradients_that_are_the_objectives_own(
    rectangles: CocoDataset, small: RetinaNetSpec
) -> None:
    objective, _ = distillation(small)
    batch = next(iter(loader(rectangles).epoch(0)))
    terms = distillation(small)[0].train()(batch.images, batch.targets, 0)
    other = distillation(small)[0].train()
    other(batch.images, batch.targets, 0).parts["frs_features"].backward()
    norm = sum(float(p.grad.square().sum()) for p in other.adapters.parameters() if p.grad is not None) ** 0.5

    found = probe(objective, loader(rectangles), CPU, "fp32")

    assert found.terms == pytest.approx({name: float(value.detach()) for name, value in terms.parts.items()}, rel=1e-4)
    assert found.reach["frs_features"]["adapters"] == pytest.approx(norm, rel=1e-4)
    assert found.reach["frs_classes"]["adapters"] == 0.0  # the logits do not come from them
    assert found.faults(NEEDED) == []
    assert found.seconds > 0
    assert found.memory > 50e6  # torch alone has more


def test_a_data_set_of_one_batch_is_gone_through_again(rectangles: CocoDataset, small: RetinaNetSpec) -> None:
    assert loader(rectangles, 12).steps_per_epoch == 1
    found = probe(DetectionObjective(build_detector(small)), loader(rectangles, 12), CPU, "fp32")
    assert set(found.reach) == {"classification", "box"}


def test_a_teacher_that_sees_nothing_rich_is_found(rectangles: CocoDataset, small: RetinaNetSpec) -> None:
    objective, teacher = distillation(small)
    assert teacher.class_output.bias is not None
    nn.init.constant_(teacher.class_output.bias, -1e4)  # every score is exactly 0
    faults = "\n".join(probe(objective, loader(rectangles), CPU, "fp32").faults(NEEDED))
    assert "the term frs_features is 0: nothing would be learnt" in faults
    assert "the gradient of frs_features at the adapters is 0" in faults


def test_a_teacher_with_a_broken_weight_is_found(rectangles: CocoDataset, small: RetinaNetSpec) -> None:
    objective, teacher = distillation(small)
    nn.init.constant_(teacher.fpn.output[0].weight, float("nan"))  # type: ignore[arg-type]
    faults = probe(objective, loader(rectangles), CPU, "fp32").faults(NEEDED)
    assert any(fault.startswith("the term frs_features is nan") for fault in faults)


def test_adapters_that_learn_nothing_are_found(rectangles: CocoDataset, small: RetinaNetSpec) -> None:
    objective, _ = distillation(small)
    objective.adapters.requires_grad_(False)
    faults = probe(objective, loader(rectangles), CPU, "fp32").faults(NEEDED)
    assert faults == ["the gradient of frs_features at the adapters is 0.0: it would teach it nothing"]
