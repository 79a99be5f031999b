"""torchvision's detectors (0.29), by name or from a file with their state dict."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from torchvision.models import get_model_weights

from frs.detectors.base import Detector
from frs.detectors.published.reading import Checkpoint, Facts, Log, fill, log, read_checkpoint
from frs.detectors.published.torchvision_families import read_family
from frs.errors import WeightsError

NAMES = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
"""Of the published detectors; torchvision downloads their weights."""

FROZEN_EPS_0 = {"retinanet_resnet50_fpn": "eeacb38b", "fasterrcnn_resnet50_fpn": "258fb6c6"}
"""Published before FrozenBatchNorm2d had an epsilon, and the beginning of their files' sha256."""

USUAL = Facts(
    norm_eps=1e-5,
    backbone_style="pytorch",
    channel_order="rgb",
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
)
"""What a file that does not say otherwise was trained with."""


def from_torchvision(
    name_or_path: str | Path,
    *,
    norm_eps: float | None = None,
    backbone_style: str | None = None,
    channel_order: str | None = None,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    log: Log = log,
) -> Detector:
    """A published detector by its name (one of `NAMES`, downloaded by torchvision), or from a file with a state dict.

    The class outputs stay as torchvision has them, those that COCO does not use included, and in a dense detector the
    column of the background (0), which nothing trained; `with_classes` chooses among them. A file does not tell the facts
    that are arguments here (see `Facts`); left out they are `USUAL`, but for norm_eps, which is 0 for the two files that
    torchvision reads so: a name or the file's sha256 tells those. classes: names without the background, needed where there
    are not COCO's 91 columns. log: is given a line for each fact and for what was left out. Raises WeightsError for a file
    that is no such detector.
    """
    facts = Facts(norm_eps, backbone_style, channel_order, pixel_mean, pixel_std, classes)
    if isinstance(name_or_path, str) and name_or_path in NAMES:
        checkpoint = _download(name_or_path)
        told = Facts(norm_eps=0.0) if name_or_path in FROZEN_EPS_0 else Facts()
    else:
        path = Path(name_or_path)
        checkpoint = read_checkpoint(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        told = Facts(norm_eps=0.0) if digest.startswith(tuple(FROZEN_EPS_0.values())) else Facts()
    spec, names, state = read_family(checkpoint, facts.over(told, USUAL, checkpoint.source, log), log)
    return fill(spec, replace(checkpoint, state=state), names, log)


def _download(name: str) -> Checkpoint:
    try:
        state = get_model_weights(name).COCO_V1.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib's, the hub's and the file system's
        url = get_model_weights(name).COCO_V1.url
        raise WeightsError(
            f"{name}: torchvision could not get its weights ({type(error).__name__}); without a network bring {url} here "
            "and give its path"
        ) from None
    return Checkpoint(name, dict(state), {})
