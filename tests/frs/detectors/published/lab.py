"""Published detectors whose every number is random, and how two sets of answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNet as TheirRetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from frs.detectors import Targets
from tests.frs.detectors.test_boxes_and_anchors import random_boxes
from tests.frs.detectors.test_matching_and_losses import targets
from tests.frs.export.lab import pictures, randomise, scale_output

SIZES = [(128, 256), (160, 224)]
"""One of multiples of the coarsest stride, one not."""

Found = tuple[Tensor, Tensor, Tensor]


def images(size: tuple[int, int], count: int = 2) -> Tensor:
    """(count, 3, *size) uint8."""
    return torch.from_numpy(pictures(count, *size))


def small_retinanet(classes: int) -> dict[str, Tensor]:
    """The state dict of torchvision's on a ResNet-18."""
    torch.manual_seed(0)
    body = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return dict(TheirRetinaNet(body, classes).state_dict())


def normalised(pixels: Tensor) -> Tensor:
    """By torchvision's own arithmetic: 0..1, its mean and deviation."""
    mean, deviation = (torch.tensor(x).reshape(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels / 255.0 - mean) / deviation


def some_objects() -> tuple[Targets, list[dict[str, Tensor]]]:
    """Objects of two images, for us and for torchvision."""
    boxes = [random_boxes(9, 1, 60), random_boxes(4, 2, 60)]
    wanted = targets(boxes)
    wanted.labels.copy_(torch.arange(18).reshape(2, 9) * 5)
    return wanted, [{"boxes": b, "labels": wanted.labels[i, : len(b)]} for i, b in enumerate(boxes)]


@torch.no_grad()
def settle(model: nn.Module, run: Callable[[Tensor], object]) -> None:
    """Random parameters, and the statistics of a batch in the BatchNorms; `run` takes images in -2..2."""
    torch.manual_seed(0)
    randomise(model)
    model.train()
    run(images((128, 128)) / 64.0 - 2.0)
    model.eval()


@torch.no_grad()
def spread(layer: nn.Conv2d, levels: Sequence[Tensor], deviation: float, mean: float) -> None:
    """So that what comes out of the layer varies by that much around a mean."""
    scale_output(layer, list(levels), deviation)
    assert layer.bias is not None
    layer.bias.fill_(mean)


def frozen_backbone(like: BackboneWithFPN, returned_layers: list[int]) -> BackboneWithFPN:
    """The same with frozen BatchNorms that have no epsilon, as torchvision reads its oldest files."""
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    made = _resnet_fpn_extractor(body, 5, returned_layers=returned_layers, extra_blocks=like.fpn.extra_blocks)
    # So little variance that 1e-5 would be seen.
    state = like.state_dict()
    for name in ("body.conv1.weight", "body.bn1.running_mean"):
        state[name] *= 0.01
    state["body.bn1.running_var"] *= 0.0001
    made.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")})
    for module in made.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    return made.eval()


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of their deviation, or of each where that is greater."""
    deviation = float(theirs.std())
    assert deviation > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4 * deviation, rtol=1e-4)


def assert_same_boxes(ours: Found, theirs: Found, least: int = 50) -> None:
    """Box by box, 0.5 pixels and a hundredth of the score at most; boxes that score alike may be in another order."""
    boxes, scores, labels = ours
    assert len(boxes) == len(theirs[0]) >= least
    free = torch.ones(len(boxes), dtype=torch.bool)
    for box, score, label in zip(*theirs, strict=True):
        near = free & (labels == label) & ((boxes - box).abs().amax(dim=1) < 0.5) & ((scores - score).abs() < 0.01)
        assert bool(near.any()), (box, score, label)
        free[near.nonzero()[0]] = False
