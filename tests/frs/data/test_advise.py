from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from frs.data.advise import (
    advise_anchors,
    advise_batch,
    advise_candidates,
    advise_epochs,
    advise_input,
    best_overlap,
    measure,
)
from frs.detectors.anchors import base_anchors, grid_anchors
from tests.frs.data.scenes import dataset, scene


def random_boxes(height: int, width: int, count: int = 300) -> np.ndarray:
    generator = np.random.default_rng(5)
    sides = np.exp(generator.uniform(np.log(4), np.log(min(height, width)), (count, 2)))
    corner = generator.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def by_torchvision(boxes: np.ndarray, height: int, width: int, levels: int, side: int) -> np.ndarray:
    """With one size a level and ratios whose roots are whole numbers: torchvision rounds its anchors."""
    sizes = tuple((side * 2**i,) for i in range(levels))
    generator = AnchorGenerator(sizes, ((0.25, 1.0, 4.0),) * levels)
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in (8 * 2**i for i in range(levels))]
    return box_iou(torch.from_numpy(boxes).float(), generator(images, maps)[0]).amax(dim=1).numpy()


@pytest.mark.parametrize(("height", "width", "levels"), [(256, 512, 3), (320, 256, 3)])
def test_the_best_overlap_is_that_of_torchvisions_anchors(height: int, width: int, levels: int) -> None:
    boxes = random_boxes(height, width)
    found = best_overlap(boxes, height, width, levels=levels, scale=2.0, octaves=1, ratios=(0.25, 1.0, 4.0))
    np.testing.assert_allclose(found, by_torchvision(boxes, height, width, levels, side=16), atol=1e-5)


@pytest.mark.parametrize(("scale", "octaves", "ratios"), [(4.0, 3, (0.5, 1.0, 2.0)), (1.5, 2, (0.1, 0.2, 0.4))])
def test_the_best_overlap_is_that_of_the_detectors_anchors(scale: float, octaves: int, ratios: tuple[float]) -> None:
    boxes = random_boxes(160, 352)
    strides = (8, 16, 32, 64, 128)
    shapes = [(20, 44), (10, 22), (5, 11), (3, 6), (2, 3)]
    anchors = grid_anchors(shapes, strides, [base_anchors(s, scale, octaves, ratios) for s in strides])
    expected = box_iou(torch.from_numpy(boxes).float(), anchors).amax(dim=1).numpy()
    found = best_overlap(boxes, 160, 352, levels=5, scale=scale, octaves=octaves, ratios=ratios)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_share_that_is_said_is_the_share_that_is_covered() -> None:
    boxes = random_boxes(384, 512)
    data = dataset([scene(i, 512, 384, [(*box[:2], *(box[2:] - box[:2]))]) for i, box in enumerate(boxes)])
    advice = advise_anchors(data, 384, 512)
    strides = [8 * 2**i for i in range(advice.levels)]
    shapes = [(-(-384 // s), -(-512 // s)) for s in strides]
    bases = [base_anchors(s, advice.scale, advice.octaves, advice.ratios) for s in strides]
    anchors = grid_anchors(shapes, strides, bases)
    exact = torch.from_numpy(np.concatenate([image.boxes for image in data.images]))
    overlap = box_iou(exact, anchors).amax(dim=1)
    assert advice.boxes == 300
    assert advice.covered == pytest.approx((overlap >= 0.5).float().mean().item(), abs=1 / 300)
    assert advice.smallest == pytest.approx(anchors[:, 2:].sub(anchors[:, :2]).prod(dim=1).min().sqrt().item())
    assert advice.largest == pytest.approx(anchors[:, 2:].sub(anchors[:, :2]).prod(dim=1).max().sqrt().item())


def test_squares_of_one_size_need_the_plainest_anchors_and_lines_of_text_need_flat_ones() -> None:
    squares = dataset([scene(i, 512, 512, [(30 * i, 20 * i, 40, 40)]) for i in range(10)])
    plain = advise_anchors(squares, 512, 512)
    assert (plain.levels, plain.octaves, plain.ratios) == (3, 2, (0.5, 1.0, 2.0))
    lines = dataset([scene(i, 512, 512, [(10 + 7 * i, 40 * i, 200, 20)]) for i in range(10)])
    flat = advise_anchors(lines, 512, 512)
    assert flat.ratios[0] <= 0.1 <= flat.ratios[-1]
    assert flat.covered == 1.0
    usual = best_overlap(
        np.concatenate([image.boxes for image in lines.images]).astype(float),
        512,
        512,
        levels=5,
        scale=4.0,
        octaves=3,
        ratios=(0.5, 1.0, 2.0),
    )
    assert (usual < 0.5).all()


def test_the_input_is_the_smallest_on_which_small_objects_stay_clear() -> None:
    # 24 px of 40 px: 0.6 of 960 is 576, of 720 is 432, in multiples of 32 448.
    data = dataset([scene(i, 960, 720, [(0, 0, 40, 40), (100, 100, 300, 200)], [0, 1]) for i in range(4)], ("a", "b"))
    advice = advise_input(data)
    assert (advice.height, advice.width, advice.limit) == (448, 576, None)
    assert advice.small_side == pytest.approx(24)
    assert measure(data).small_class == "a"


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(640, 480)], 300, ((256, 320), "least")),  # large objects: no smaller than what a backbone is used to
        ([(640, 480)], 5, ((480, 640), "images")),  # small ones: as large as the photographs
        ([(4000, 3000)], 12, ((768, 1024), "most")),  # and no larger than 1024
        ([(480, 640)], 300, ((320, 256), "least")),  # portrait
        ([(640, 480), (480, 640)], 300, ((320, 320), "least")),  # both
        ([(640, 480)] * 9 + [(480, 640)], 300, ((256, 320), "least")),  # one in ten is no mixture
        ([(28, 28)], 20, ((320, 320), "least")),  # thumbnails are enlarged
        ([(3000, 100)], 80, ((64, 928), None)),  # a panorama: 24 px of 80 are 0.3, 900 px of 3000
    ],
)
def test_inputs_by_shape(sizes: list[tuple[int, int]], side: int, expected: tuple[tuple[int, int], str | None]) -> None:
    data = dataset([scene(i, w, h, [(0, 0, side, min(side, h))]) for i, (w, h) in enumerate(sizes)])
    advice = advise_input(data)
    assert ((advice.height, advice.width), advice.limit) == expected


def test_what_is_measured() -> None:
    images = [
        scene(1, 100, 80, [(0, 0, 10, 40), (0, 0, 5, 5)], [0, 1]),
        scene(2, 120, 80, []),
        scene(3, 140, 90, [(0, 0, 30, 30)], [0]),
    ]
    images[2].crowd[0] = True
    facts = measure(dataset(images, ("a", "b", "never seen")))
    assert (facts.images, facts.empty, facts.objects, facts.classes) == (3, 2, 2, 3)
    assert (facts.width, facts.height, facts.densest) == (120, 80, 2)
    assert facts.median_side == pytest.approx((20 + 5) / 2)
    assert (facts.small_class, facts.small_side) == ("b", 5)


@pytest.mark.parametrize(
    ("images", "side", "batch"),
    [(10_000, 512, 8), (10_000, 1024, 2), (79, 320, 4), (9, 320, 1), (1, 320, 1)],
)
def test_the_batch_leaves_ten_steps_and_fits_a_modest_card(images: int, side: int, batch: int) -> None:
    found, memory = advise_batch(images, side, side, classes=3, anchors=9)
    assert found == batch
    assert memory <= 8


def test_the_memory_is_what_autograd_keeps() -> None:
    """2.52 GB a megapixel for 80 classes, and 0.6 GB for weights, gradients and moments."""
    from frs.detectors import RetinaNetSpec, build_detector
    from frs.detectors.base import Targets

    spec = RetinaNetSpec(tuple(map(str, range(80))), tuple(range(80)), backbone="resnet50", head_norm="group")
    detector = build_detector(spec)
    storages: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    one = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(torch.tensor([[[10.0, 10, 60, 60]]]), torch.zeros(1, 1, dtype=torch.int64), one, ~one)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = detector.features(detector.normalize(torch.zeros(1, 3, 256, 256)))
        sum(detector.loss(features, detector.head(features), targets).values())
    weights = sum(parameter.nbytes for parameter in detector.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in detector.parameters()}
    activations = sum(size for pointer, size in storages.items() if pointer not in own)
    _, memory = advise_batch(1, 256, 256, classes=80, anchors=9)
    assert memory == pytest.approx((4 * weights + activations) / 1e9, rel=0.05)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 100), (30, 100), (31, 97), (250, 12), (15_000, 12)])
def test_epochs_make_three_thousand_steps_within_bounds(steps: int, epochs: int) -> None:
    assert advise_epochs(steps) == epochs


@pytest.mark.parametrize(
    ("densest", "expected"), [(1, (300, 100)), (50, (600, 100)), (101, (1300, 200)), (5000, (3840, 1000))]
)
def test_candidates_follow_the_densest_image(densest: int, expected: tuple[int, int]) -> None:
    assert advise_candidates(densest) == expected
