from __future__ import annotations

import math

import pytest
import torch

from frs.detectors import RetinaNet, RetinaNetSpec, Targets, build_detector
from frs.distill import frs_loss
from frs.distill.objective import DistillationObjective, DistillationWeights
from frs.distill.scores import inside_boxes


def detector(channels: int, seed: int) -> RetinaNet:
    torch.manual_seed(seed)
    spec = RetinaNetSpec(
        classes=("a", "b"),
        category_ids=(1, 2),
        backbone="resnet18",
        backbone_options={"channels": [8, 8, 16, 16], "stem_width": 8},
        fpn_channels=channels,
        levels=3,
        head_depth=1,
    )
    built = build_detector(spec)
    assert isinstance(built, RetinaNet)
    return built


def batch() -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[[4.0, 4, 40, 40]], [[20.0, 10, 60, 50]]])
    flags = torch.ones(2, 1, dtype=torch.bool)
    return images, Targets(boxes, torch.tensor([[0], [1]]), flags, torch.zeros_like(flags))


def make(**settings: float | str) -> DistillationObjective:
    return DistillationObjective(detector(16, 1), detector(24, 2), DistillationWeights(**settings))  # type: ignore[arg-type]


def test_given_weights_ramp_over_the_warm_up() -> None:
    objective = make(alpha=0.5, beta=0.25, warmup_steps=10)
    images, targets = batch()
    for step, ramp in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        terms = objective.eval()(images, targets, step)
        parts = {name: float(value.detach()) for name, value in terms.parts.items()}
        expected = (
            parts["classification"] + parts["box"] + ramp * (0.5 * parts["frs_features"] + 0.25 * parts["frs_classes"])
        )
        assert float(terms.total.detach()) == pytest.approx(expected, rel=1e-5)


def pulls(objective: DistillationObjective, images: torch.Tensor, targets: Targets) -> tuple[float, float, float]:
    """The norms of the gradients at the student's pyramid: of the detection, of the features, of the classes."""
    student, teacher = objective.detector, objective._teacher[0]
    pyramid = student.features(student.normalize(images, None))
    outputs = student.head(pyramid)
    with torch.no_grad():
        rich = teacher.features(teacher.normalize(images, None))
    distilled = frs_loss(objective.adapters(pyramid), rich, outputs.class_logits, teacher.class_logits(rich))
    detection = torch.stack(list(student.loss(pyramid, outputs, targets).values())).sum()

    def norm(loss: torch.Tensor) -> float:
        gradients = torch.autograd.grad(loss, pyramid, retain_graph=True, allow_unused=True)
        return math.hypot(*(float(each.norm()) for each in gradients if each is not None))

    return norm(detection), norm(distilled.features), norm(distilled.classes)


def test_auto_lets_each_term_pull_at_the_pyramid_by_its_share_of_the_detection_loss_and_freezes() -> None:
    objective = make(share=0.5, auto_steps=2, warmup_steps=0).eval()
    images, targets = batch()
    batches = [(images, targets), (255 - images, targets)]
    for step, (pixels, boxes) in enumerate(batches):
        terms = objective(pixels, boxes, step)
        detection = float((terms.parts["classification"] + terms.parts["box"]).detach())
        assert float(terms.total.detach()) == pytest.approx(detection), "while it measures, only the boxes teach"
        assert math.isnan(objective.alpha)
        torch.autograd.backward(terms.total)  # what measured has left the graph whole
    objective(images, targets, 2)
    detection, features, classes = (
        sum(norms) for norms in zip(*(pulls(objective, *each) for each in batches), strict=True)
    )
    assert objective.alpha == pytest.approx(0.5 * detection / features, rel=1e-4)
    assert objective.beta == pytest.approx(0.5 * detection / classes, rel=1e-4)
    frozen = (objective.alpha, objective.beta)
    with torch.no_grad():
        for parameter in objective.adapters.parameters():
            parameter.mul_(10)
    objective(images, targets, 3)
    assert (objective.alpha, objective.beta) == frozen


@pytest.mark.parametrize("score", ["richness", "everywhere", "boxes"])
def test_the_score_that_is_asked_for_weighs_both_terms(score: str) -> None:
    objective = make(alpha=1.0, beta=1.0, warmup_steps=0, score=score).eval()
    images, targets = batch()
    terms = objective(images, targets, 0)
    student, teacher = objective.detector, objective._teacher[0]
    pyramid = student.features(student.normalize(images, None))
    rich = teacher.features(teacher.normalize(images, None))
    logits = teacher.class_logits(rich)
    weights = {
        "richness": [level.amax(1).sigmoid() for level in logits],
        "everywhere": [torch.ones(2, 8 >> i, 8 >> i) for i in range(3)],
        "boxes": [inside_boxes(level, targets, 8 << i) for i, level in enumerate(logits)],
    }[score]
    expected = frs_loss(objective.adapters(pyramid), rich, student.head(pyramid).class_logits, logits, weights)
    assert float(terms.parts["frs_features"].detach()) == pytest.approx(float(expected.features.detach()), rel=1e-5)
    assert float(terms.parts["frs_classes"].detach()) == pytest.approx(float(expected.classes.detach()), rel=1e-5)


def test_one_weight_given_and_one_measured() -> None:
    objective = make(alpha=0.125, auto_steps=1, warmup_steps=0)
    images, targets = batch()
    objective(images, targets, 0)
    objective(images, targets, 1)
    assert objective.alpha == 0.125
    assert objective.beta > 0


def test_measured_weights_are_in_the_checkpoint_and_the_teacher_is_not() -> None:
    objective = make(auto_steps=1)
    images, targets = batch()
    objective(images, targets, 0)
    objective(images, targets, 1)
    state = objective.state_dict()
    assert {name.split(".")[0] for name in state} == {"detector", "adapters", "weights", "sums"}
    resumed = make(auto_steps=1)
    resumed.load_state_dict(state)
    assert (resumed.alpha, resumed.beta) == (objective.alpha, objective.beta)


def test_gradients_reach_student_and_adapters_and_never_the_teacher() -> None:
    objective = make(alpha=1.0, beta=1.0, warmup_steps=0)
    teacher = objective._teacher[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    images, targets = batch()
    torch.autograd.backward(objective.train()(images, targets, 1).total)
    trained = dict(objective.named_parameters())
    assert all(p.grad is not None for p in trained.values())
    # timm starts the last norm of a residual branch at 0, so that nothing before it has a gradient yet.
    assert all(bool(p.grad.any()) for name, p in trained.items() if ".body.layer" not in name and p.grad is not None)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training, "train() on the objective must not wake the teacher's batch statistics"


def test_what_lies_beyond_an_image_teaches_nothing() -> None:
    """Teacher and student see zeros there, whatever the bytes are."""
    images, targets = batch()
    targets.sizes = torch.tensor([[64, 40], [33, 64]])
    other = images.clone()
    other[0, :, :, 40:], other[1, :, 33:] = 255, 7
    losses = [
        float(make(alpha=1e-3, beta=0.1, warmup_steps=0)(each, targets, 0).total.detach()) for each in (images, other)
    ]
    assert losses[0] == losses[1]
    targets.sizes = None
    assert float(make(alpha=1e-3, beta=0.1, warmup_steps=0)(other, targets, 0).total.detach()) != losses[0]
