"""The papers' input size. Sizes worked out by hand as mmcv does: the smaller of both scales, halves upwards."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from frs.data import CocoDataset, ShortestEdge, read_coco, shortest_edge_batches
from frs.data.loader import Batch, TrainingLoader
from frs.data.resize import Resized, padded
from frs.data.transforms import Augment
from frs.detectors import RetinaNetSpec, build_detector
from tests.frs.data.test_loader import AUGMENT, same

SIZES = [
    (60, 100),
    (100, 60),
    (64, 64),
    (50, 120),
    (90, 60),
    (60, 100),
    (60, 100),
    (80, 61),
    (100, 60),
    (61, 80),
    (60, 90),
]
PLAIN = Augment(flip_horizontal=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Dark images of many shapes (height, width), a bright rectangle in each."""
    folder = tmp_path_factory.mktemp("shapes")
    images: list[Any] = []
    annotations: list[Any] = []
    for number, (height, width) in enumerate(SIZES, start=1):
        picture = Image.new("RGB", (width, height), (90, 90, 90))
        ImageDraw.Draw(picture).rectangle((10, 20, 39, 49), fill=(250, 210, 40))
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        box = {"bbox": [10, 20, 30, 30], "area": 900, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "rectangle"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return read_coco(folder / "annotations.json", folder)


def loader(data: CocoDataset, **changes: Any) -> TrainingLoader:
    fields: dict[str, Any] = {"height": 64, "width": 64, "batch": 2, "seed": 3, "augment": PLAIN, "drop_empty": False}
    fields |= {"workers": 0, "shortest_edge": ShortestEdge((96,), 150)}
    return TrainingLoader(data, **{**fields, **changes})


@pytest.mark.parametrize(
    ("image", "resized"),
    [
        ((480, 640), (800, 1067)),  # 640 * 800/480 = 1066.67
        ((640, 480), (1067, 800)),
        ((426, 640), (800, 1202)),  # 640 * 800/426 = 1201.88
        ((400, 1000), (533, 1333)),  # the longer side wins: 400 * 1.333 = 533.2
        ((800, 800), (800, 800)),
    ],
)
def test_the_shorter_side_is_800_unless_the_longer_would_exceed_1333(
    image: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert ShortestEdge().size(*image, 800) == resized


def test_a_half_is_rounded_upwards() -> None:
    assert ShortestEdge((50,), 1000).size(100, 105, 50) == (50, 53)  # 52.5, which Python's round makes 52


def test_a_side_is_drawn_of_the_list_or_of_the_whole_range() -> None:
    generator = np.random.default_rng(0)
    assert {ShortestEdge((640, 800)).draw(generator) for _ in range(200)} == {640, 800}
    drawn = {ShortestEdge((480, 490), multiscale="range").draw(generator) for _ in range(400)}
    assert drawn == set(range(480, 491))
    assert ShortestEdge((640, 672, 800), 1400).tested == ShortestEdge((800,), 1400)


def test_boxes_go_by_the_ratio_of_each_axis_and_come_back() -> None:
    placed = Resized(height=800, width=1202, original_height=426, original_width=640)
    box = np.array([[0, 0, 640, 426], [10, 20, 30, 40]], np.float32)
    there = placed.to_input(box)
    assert there[0].tolist() == [0, 0, 1202, 800]
    np.testing.assert_allclose(there[1], [10 * 1202 / 640, 20 * 800 / 426, 30 * 1202 / 640, 40 * 800 / 426], rtol=1e-6)
    np.testing.assert_allclose(placed.to_original(there), box, atol=1e-3)
    assert placed.to_original(np.array([[-5.0, -5.0, 1300.0, 900.0]])).tolist() == [[0, 0, 640, 426]]


def test_a_batch_is_padded_to_multiples_of_32_and_boxes_lie_on_what_is_drawn(data: CocoDataset) -> None:
    seen = 0
    for batch in loader(data).epoch(0):
        assert batch.targets.sizes is not None
        height, width = batch.targets.sizes.amax(0).tolist()
        assert tuple(batch.images.shape[2:]) == padded(height, width)
        for i, (high, wide) in enumerate(batch.targets.sizes.tolist()):
            image = data.images[batch.image_ids[i] - 1]
            assert (high, wide) == ShortestEdge().size(image.height, image.width, 96) or max(high, wide) == 150
            pixels = batch.images[i]
            assert bool((pixels[:, :high, :wide] > 30).all()), "the image"
            assert not bool(pixels[:, high:].any() or pixels[:, :, wide:].any()), "padding"
            ys, xs = torch.nonzero(pixels[0] > 170, as_tuple=True)
            extent = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert float((batch.targets.boxes[i, 0] - extent).abs().max()) <= 1.0
            seen += 1
    assert seen == 10


def test_batches_are_upright_or_lying_but_for_the_last(data: CocoDataset) -> None:
    upright = {image.id: image.height > image.width for image in data.images}
    orders = set()
    for epoch in range(6):
        made = [batch.image_ids for batch in loader(data).epoch(epoch)]
        assert len(made) == loader(data).steps_per_epoch == len(SIZES) // 2
        drawn = [number for batch in made for number in batch]
        assert len(set(drawn)) == len(drawn)
        assert all(len({upright[number] for number in batch}) == 1 for batch in made[:-1])
        orders.add(tuple(drawn))
    assert len(orders) == 6


@pytest.mark.parametrize("edge", [ShortestEdge((64, 96), 150, "range"), ShortestEdge((64, 96), 150)])
def test_any_step_in_any_process_gives_the_same_bytes(data: CocoDataset, edge: ShortestEdge) -> None:
    changes: dict[str, Any] = {"shortest_edge": edge, "augment": Augment(scale=(0.7, 1.4), colour=0.3)}
    whole = list(loader(data, **changes).epoch(1))
    other = loader(data, **changes, workers=2)
    assert all(same(a, b) for a, b in zip(whole, other.epoch(1), strict=True))
    assert all(same(a, b) for a, b in zip(whole[3:], other.epoch(1, start_step=3), strict=True))
    other.close()
    sides = {int(size.min()) for batch in whole for size in _sizes(batch)}
    assert len(sides) > 1
    assert sides <= set(range(60, 97))


def _sizes(batch: Batch) -> torch.Tensor:
    assert batch.targets.sizes is not None
    return batch.targets.sizes


def test_a_letterboxed_batch_has_no_sizes(data: CocoDataset) -> None:
    batch = next(loader(data, shortest_edge=None, augment=AUGMENT).epoch(0))
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.targets.sizes is None
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_padding_is_zero_behind_the_normalisation_as_in_torchvision(small: RetinaNetSpec) -> None:
    detector = build_detector(small)
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((40, 70), (64, 33))
    ]
    mean = (detector.pixel_mean / 255).flatten().tolist()
    std = (detector.pixel_std / 255).flatten().tolist()
    theirs = GeneralizedRCNNTransform(800, 1333, mean, std, size_divisible=32)
    expected = theirs.batch_images([theirs.normalize(image / 255) for image in images], size_divisible=32)
    ours = torch.full((2, 3, *expected.shape[2:]), 77, dtype=torch.uint8)
    for place, image in zip(ours, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    found = detector.normalize(ours, torch.tensor([[40, 70], [64, 33]]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert bool((found == 0).eq(expected == 0).all())


def test_images_are_scored_unpadded_in_batches_of_one_size(data: CocoDataset) -> None:
    seen = []
    for pixels, placed, images in shortest_edge_batches(data, ShortestEdge((96,), 150), 2):
        assert len(images) == len(placed) == len(pixels) <= 2
        for image, each in zip(images, placed, strict=True):
            assert pixels.shape[1:] == (3, each.height, each.width)
            assert (each.original_height, each.original_width) == (image.height, image.width)
            assert min(each.height, each.width) == 96 or max(each.height, each.width) == 150
        seen += [image.id for image in images]
    assert sorted(seen) == list(range(1, len(SIZES) + 1))
