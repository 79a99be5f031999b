"""ResNets: torchvision, mmdetection and timm give their parts the same names."""

from __future__ import annotations

from frs.detectors.published.reading import Checkpoint
from frs.errors import WeightsError

_BLOCKS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""(of bottlenecks, blocks of each layer) -> timm's name."""


def read_resnet(checkpoint: Checkpoint, prefix: str) -> str:
    """timm's name of the network whose tensors begin so. Raises WeightsError where it is none that is known."""
    blocks = tuple(
        len({name.removeprefix(layer).split(".")[0] for name in checkpoint.state if name.startswith(layer)})
        for layer in (f"{prefix}layer{i}." for i in (1, 2, 3, 4))
    )
    bottlenecks = f"{prefix}layer1.0.conv3.weight" in checkpoint.state
    if (bottlenecks, blocks) not in _BLOCKS:
        kind = "bottlenecks" if bottlenecks else "blocks"
        raise WeightsError(
            f"{checkpoint.source}: the backbone ({prefix}*) has {blocks} {kind} a layer, which is none of "
            f"{', '.join(_BLOCKS.values())}"
        )
    return _BLOCKS[bottlenecks, blocks]
