"""A teacher that torchvision or mmdetection trained, in a run: taken, its classes chosen by name, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from frs.detectors import from_torchvision, load_detector
from tests.bad_input.conftest import Place, call
from tests.frs.detectors.published.lab import small_retinanet

STUDENT: dict[str, Any] = {
    "backbone": "resnet18",
    "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8},
    "fpn_channels": 16,
    "head_depth": 1,
}


@pytest.fixture
def with_teacher(place: Place) -> Place:
    """mine.yaml with a RetinaNet of torchvision's for two classes, of which the data has the second."""
    torch.save(small_retinanet(3), place.folder / "w.pth")
    configured(place, {})
    return place


def configured(
    place: Place,
    detector: dict[str, Any],
    classes: tuple[str, ...] = ("circle", "rectangle"),
    student: dict[str, Any] = STUDENT,
) -> None:
    teacher: dict[str, Any] = {"checkpoint": "torchvision:w.pth", "assume": {"classes": list(classes), "norm_eps": 0.0}}
    if detector:
        teacher["detector"] = detector
    place.configure(teacher=teacher, student={"detector": student, "train": {"epochs": 1, "batch": 2}})


def test_it_is_taken_with_the_classes_of_the_data(with_teacher: Place) -> None:
    said = with_teacher.accepts("check", "mine.yaml")
    assert "w.pth: resnet18, 3 classes; the data's 1 classes chosen by name among its 3" in said
    assert "norm_eps 0.0 (given)" in said
    assert "channel_order rgb (not in the file, so the usual)" in said
    with_teacher.accepts("run", "mine.yaml", "--until", "teacher", "--set", "distill.auto_steps=1")
    taken = load_detector(with_teacher.folder / "runs/mine/teacher.safetensors")
    assert (taken.spec.classes, taken.spec.category_ids) == (("rectangle",), (7,))
    whole = from_torchvision(with_teacher.folder / "w.pth", classes=("circle", "rectangle"), norm_eps=0.0)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = taken.class_logits(taken.features(images))[0]  # (1, 9 * 1, 8, 8)
        theirs = whole.class_logits(whole.features(images))[0]  # (1, 9 * 3, 8, 8)
    torch.testing.assert_close(ours, theirs[:, 2::3])
    manifest = json.loads((with_teacher.folder / "runs/mine/manifest.json").read_text())
    metrics = manifest["stages"]["teacher"]["metrics"]
    assert metrics["given"] == "torchvision:w.pth"
    assert metrics["changed"] == "the data's 1 classes chosen by name among its 3"


@pytest.mark.parametrize(
    ("detector", "classes", "student", "sentence"),
    [
        (
            {**STUDENT, "backbone_options": {}, "fpn_channels": 128},
            ("circle", "rectangle"),
            STUDENT,
            "the checkpoint's fpn_channels is 256, teacher.detector.fpn_channels is 128; correct that, or leave",
        ),
        (
            {},
            ("circle", "square"),
            STUDENT,
            "the detector's classes are __background__, circle, square, the wanted ones rectangle; rectangle of these is not",
        ),
        (
            {},
            ("circle", "rectangle"),
            {**STUDENT, "family": "fcos"},
            "the teacher has 9 anchors at a place, student.detector has 1; FRS compares them place by place",
        ),
    ],
    ids=["section", "classes", "student"],
)
def test_it_is_refused(
    with_teacher: Place, detector: dict[str, Any], classes: tuple[str, ...], student: dict[str, Any], sentence: str
) -> None:
    configured(with_teacher, detector, classes, student)
    for said in (
        with_teacher.refuses("run", "mine.yaml", "--until", "teacher"),
        call("check", "mine.yaml").stdout.replace(f"{with_teacher.folder}/", ""),
    ):
        assert f"w.pth: {sentence}" in said


def test_a_file_with_another_content_is_another_teacher(with_teacher: Place) -> None:
    def fingerprint() -> str:
        manifest = json.loads((with_teacher.folder / "runs/mine/manifest.json").read_text())
        found: str = manifest["stages"]["teacher"]["fingerprint"]
        return found

    def run() -> str:
        with_teacher.accepts("run", "mine.yaml", "--until", "teacher", "--set", "distill.auto_steps=1")
        return fingerprint()

    first = run()
    path: Path = with_teacher.folder / "w.pth"
    (with_teacher.folder / "moved").mkdir()
    path.rename(with_teacher.folder / "moved/w.pth")
    text = (with_teacher.folder / "mine.yaml").read_text()
    (with_teacher.folder / "mine.yaml").write_text(text.replace("torchvision:w.pth", "torchvision:moved/w.pth"))
    assert run() == first
    state = small_retinanet(3)
    state["head.classification_head.cls_logits.bias"] += 1
    torch.save(state, with_teacher.folder / "moved/w.pth")
    assert run() != first
