from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import box_iou, clip_boxes_to_image

from frs.detectors import boxes
from frs.detectors.anchors import base_anchors, grid_anchors, padded_strides


def random_boxes(count: int, seed: int, side: float = 200.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * side
    sides = 10 + torch.rand(count, 2, generator=generator) * side
    return torch.cat([corners, corners + sides], dim=1)


def test_iou_is_torchvisions() -> None:
    a, b = random_boxes(50, 1), random_boxes(70, 2)
    torch.testing.assert_close(boxes.iou(a, b), box_iou(a, b))
    assert boxes.iou(a, b)[None].shape == boxes.iou(a[None], b[None]).shape


def test_boxes_without_area_overlap_by_nothing() -> None:
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert float(boxes.iou(point, point)) == 0.0


def test_coding_is_torchvisions() -> None:
    anchors, wanted = random_boxes(60, 3), random_boxes(60, 4)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = boxes.encode(wanted, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(wanted, anchors), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(boxes.decode(deltas, anchors), wanted, atol=1e-3, rtol=1e-5)
    noisy = deltas + torch.rand(60, 4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(boxes.decode(noisy, anchors), coder.decode_single(noisy, anchors), atol=1e-3, rtol=1e-5)


def test_a_wild_prediction_stays_finite() -> None:
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    huge = boxes.decode(torch.tensor([[0.0, 0, 900, -900]]), anchor)[0]
    torch.testing.assert_close(huge[2] - huge[0], torch.tensor(1000.0))
    torch.testing.assert_close(huge[3] - huge[1], torch.tensor(16 * 16 / 1000.0))


def test_torchvisions_coder_lets_boxes_shrink() -> None:
    anchor, deltas = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 900, -9]])
    found = boxes.decode(deltas, anchor, bounded_below=False)
    torch.testing.assert_close(found, BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, anchor))
    assert float(found[0, 3] - found[0, 1]) < 0.01


def test_clipping_is_torchvisions() -> None:
    wild = random_boxes(50, 6) - 60
    torch.testing.assert_close(boxes.clip(wild, (90, 120)), clip_boxes_to_image(wild, (90, 120)))


def test_base_anchors_by_hand() -> None:
    # Scale 4 at stride 8: sides 32, 32 * sqrt(2); ratio h / w = 4 halves the width and doubles the height.
    found = base_anchors(8, 4.0, 2, (1.0, 4.0))
    root = 2**0.5
    expected = [[16, 16], [16 * root, 16 * root], [8, 32], [8 * root, 32 * root]]
    torch.testing.assert_close(found[:, 2:], torch.tensor(expected))
    torch.testing.assert_close(found[:, :2], -torch.tensor(expected))


def test_the_grid_is_row_major_and_centred_on_multiples_of_the_stride() -> None:
    found = grid_anchors([(2, 3), (1, 1)], (8, 16), [torch.tensor([[-1.0, -1, 1, 1]])] * 2)
    centres = (found[:, :2] + found[:, 2:]) / 2
    assert centres.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0]]


def test_anchors_are_torchvisions_but_for_its_rounding() -> None:
    sizes = tuple(tuple(4.0 * stride * 2 ** (k / 3) for k in range(3)) for stride in (8, 16, 32))
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    shapes = [(16, 16), (8, 8), (4, 4)]
    images = ImageList(torch.zeros(1, 3, 128, 128), [(128, 128)])
    expected = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    found = grid_anchors(shapes, (8, 16, 32), [base_anchors(s, 4.0, 3, (0.5, 1.0, 2.0)) for s in (8, 16, 32)])
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(256, 256), (256, 320), (160, 416)])
def test_torchvisions_rounded_anchors_and_its_strides(size: tuple[int, int]) -> None:
    strides, ratios = (8, 16, 32, 64, 128), (0.5, 1.0, 2.0)
    shapes = [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
    theirs = _default_anchorgen()
    images = ImageList(torch.zeros(1, 3, *size), [size])
    expected = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    bases = [base_anchors(s, 4.0, 3, ratios, rounded=True) for s in strides]
    assert torch.equal(grid_anchors(shapes, padded_strides(shapes, 8), bases), expected)
