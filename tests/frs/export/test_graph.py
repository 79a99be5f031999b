from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from frs.detectors import Detector
from frs.edge.predictor import Detections
from frs.export.graph import DeployedDetector, Selection
from frs.export.torch_predictor import TorchPredictor
from tests.frs.export.lab import busy_detector, pictures

HEIGHT, WIDTH = 96, 128
IMAGES = pictures(2, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return busy_detector(IMAGES)


def test_selection_by_hand() -> None:
    """Six candidates: kept; suppressed by it; same place, another class; without area; kept; below the threshold."""
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [5, 5, 5, 9], [30, 30, 40, 50], [60, 60, 70, 70]]
    ).float()
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.1])
    labels = torch.tensor([2, 2, 0, 1, 1, 1])
    selection = Selection(rounds=4, detections=5, score_threshold=0.1, iou_threshold=0.5)
    out, out_scores, out_labels, count = selection(boxes[None], scores[None], labels[None])
    assert count.tolist() == [3]
    assert out_scores[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0, 0])
    assert out_labels[0].tolist() == [2, 0, 1, 0, 0]
    assert out[0, :3].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 50]]
    assert not out[0, 3:].any()
    assert (out_labels.dtype, count.dtype) == (torch.int32, torch.int32)


def test_the_graph_decodes_as_the_reference_does(detector: Detector) -> None:
    """With as many candidates as there are pairs above the threshold, the two selections are the same rule."""
    options = {"score_threshold": 0.1, "detections": 60}
    graph = TorchPredictor(detector, HEIGHT, WIDTH, decode="graph", candidates=900, rounds=40, **options)  # type: ignore[arg-type]
    reference = TorchPredictor(detector, HEIGHT, WIDTH, **options)  # type: ignore[arg-type]
    for ours, theirs in zip(graph.predict(IMAGES), reference.predict(IMAGES), strict=True):
        assert len(ours) == len(theirs) > 20
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_the_detector_that_is_handed_in_stays_as_it_is(detector: Detector) -> None:
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()
    graph = DeployedDetector(detector, half=True)
    assert detector.training
    assert all(parameter.requires_grad for parameter in detector.parameters())
    detector.eval()
    for name, tensor in detector.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert {parameter.dtype for parameter in graph.parameters()} == {torch.float16}


def test_half_keeps_what_must_be_exact_in_float32(detector: Detector) -> None:
    graph = DeployedDetector(detector, half=True)
    assert torch.equal(graph.detector.pixel_mean, detector.pixel_mean)
    assert graph.detector.pixel_mean.dtype == torch.float32
    boxes, scores, _, _ = graph(torch.from_numpy(IMAGES))
    assert boxes.dtype == scores.dtype == torch.float32


def test_predictors_say_what_they_are(detector: Detector) -> None:
    predictor = TorchPredictor(detector, HEIGHT, WIDTH)
    assert predictor.info.category_ids == (3, 17, 44)
    found = predictor.predict(IMAGES)[0]
    assert isinstance(found, Detections)
    assert [str(part.dtype) for part in (found.boxes, found.scores, found.labels)] == ["float32", "float32", "int32"]
    with pytest.raises(ValueError, match="expected reference or graph"):
        TorchPredictor(detector, HEIGHT, WIDTH, decode="fast")


def test_images_of_any_size_are_padded_behind_the_normalisation_and_boxes_end_with_the_image(
    detector: Detector,
) -> None:
    """Against torchvision's padding; where boxes are clipped to the padded input, some reach beyond the image."""
    images = IMAGES[:2, :, : HEIGHT - 13, : WIDTH - 7]
    high, wide = images.shape[2:]
    options: dict[str, Any] = {"score_threshold": 0.05, "iou_threshold": 0.5}
    padding = GeneralizedRCNNTransform(0, 0, [0, 0, 0], [1, 1, 1], size_divisible=32)
    with torch.inference_mode():
        normalised = detector.normalize(torch.from_numpy(np.ascontiguousarray(images)))
        features = detector.features(padding.batch_images(list(normalised)))
        outputs = detector.head(features)
        expected = detector.reference_detections(features, outputs, image_size=(high, wide), **options)
        beyond = detector.reference_detections(features, outputs, image_size=(HEIGHT, WIDTH), **options)
    found = TorchPredictor(detector, 32, 32, **options).predict(np.ascontiguousarray(images))
    for ours, (boxes, scores, labels) in zip(found, expected, strict=True):
        assert len(ours) > 20
        np.testing.assert_allclose(ours.boxes, boxes, atol=1e-3)
        np.testing.assert_allclose(ours.scores, scores, atol=1e-5)
        assert ours.labels.tolist() == labels.tolist()
        assert float(ours.boxes[:, 2].max()) <= wide
        assert float(ours.boxes[:, 3].max()) <= high
    assert any(float(boxes[:, 2].max()) > wide or float(boxes[:, 3].max()) > high for boxes, _, _ in beyond)
