"""`frs-pipeline init`: a configuration for a data set, with the reason beside every choice."""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from frs.errors import DataError
from pipeline.config import RUN_NAME
from pipeline.deployment import ExportConfig, GatesConfig
from pipeline.errors import ConfigError
from pipeline.files import write_atomic

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.data.advise import Facts, InputAdvice

_TEMPLATE = Template("""\
# Written by `frs-pipeline init`. What stands here was chosen from the training split:
# $images, $objects, $classes.
# Change what you know better; docs/configuration.md explains every key, and those that are not here have defaults.
version: 1
name: $name

$split_reason
data:
  source: coco
  train:
    annotations: $train_annotations
    images: $train_images
  val:
    annotations: $val_annotations
    images: $val_images

$input_reason
input: {height: $height, width: $width}

teacher:
  # A teacher that this pipeline has trained already (runs/NAME/teacher.safetensors) is taken instead of training one:
  # checkpoint: teacher.safetensors
  detector:
    backbone: resnet50    # any timm model with features of strides 8, 16 and 32
    weights: imagenet     # downloaded by timm; or a weights file of this backbone
    head_norm: group      # GroupNorm: the heads start from nothing, and its statistics need no large batch
    # Anchors of $smallest to $largest px, $ratios times as high as wide.
    # $anchor_reason
    levels: $levels
    anchor_scale: $scale
    octaves: $octaves
    ratios: $ratios
  train:
    # $batch_reason
    batch: $batch
    # $epochs_reason
    epochs: $epochs
    validate_every: $validate_every
    # $drop_reason
    drop_empty: $drop_empty
    augment:
      # $flip_reason
      flip_horizontal: $flip
      flip_vertical: false    # true where nothing has a right way up, as seen from above
      scale: [0.8, 1.25]      # images are zoomed at random between these

student:
  detector:
    backbone: resnet18    # the smaller, the faster on the device and the less it can learn
    weights: imagenet
    fpn_channels: 128     # half of the teacher's
    head_norm: group
    levels: $levels             # as the teacher's, as octaves and the number of ratios must be
    anchor_scale: $scale
    octaves: $octaves
    ratios: $ratios
  train:
    batch: $batch
    epochs: $epochs
    validate_every: $validate_every
    drop_empty: $drop_empty
    augment: {flip_horizontal: $flip, flip_vertical: false, scale: [0.8, 1.25]}

distill:
  # A fifth of the student's steps, 500 at most.
  warmup_steps: $warmup_steps

export:
  $candidates_reason
  candidates: $candidates
  detections: $detections

gates:
  $parity_reason
  parity_min_boxes: $parity_boxes
""")


@dataclass(frozen=True)
class Split:
    """One split as the configuration names it."""

    data: CocoDataset
    annotations: Path
    images: Path


def run_init(
    annotations: Path, images: Path, *, val: tuple[Path, Path] | None, out: Path | None, name: str | None
) -> list[str]:
    """Write a configuration for a data set, and its two splits where `val` (annotations, images) is not given.

    out: by default NAME.yaml; name: by default the stem of `out`, or "mine". The splits are NAME.train.json and
    NAME.val.json beside it. Returns what is to be said of it. Raises ConfigError for a file that is there already or a name
    that a run cannot have, DataError for a data set that cannot be used.
    """
    from frs.data import read_coco
    from frs.data.split import split_dataset

    name = name or (re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem) if out else "mine")
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(
            f"{name!r} cannot be the name of the run, which is up to 64 letters, digits, . _ - and begins with a letter or "
            "digit; give another with --name"
        )
    out = out or Path(f"{name}.yaml")
    made = [] if val else [out.with_name(f"{name}.{split}.json") for split in ("train", "val")]
    _refuse_to_overwrite([*made, out])
    whole = read_coco(annotations, images)
    if all(image.crowd.all() for image in whole.images):
        raise DataError(
            f"{annotations}: there is not one object that is no crowd, so nothing to learn; add annotations"
        )
    if val:
        train, held = Split(whole, annotations, images), Split(read_coco(*val), *val)
        reason = "The validation images are those that were given."
    else:
        train, held = (Split(part, file, images) for part, file in zip(split_dataset(whole), made, strict=True))
        reason = _split_reason(train.data, held.data)
    values = {"name": quoted(name), **_data_values(train, held, out.parent.resolve()), **_model_values(train, held)}
    text = _TEMPLATE.substitute(values, split_reason=_comment(reason))
    _write([] if val else [train, held], out, text)
    return [
        f"train: {values['images']}, {values['objects']}, {values['classes']}. {reason}",
        f"input {values['width']} x {values['height']}, anchors of {values['smallest']} to {values['largest']} px, batch "
        f"{values['batch']}, {values['epochs']} epochs; the file says why",
        f"written: {', '.join(map(str, [*made, out]))}. Next: frs-pipeline check {shlex.quote(str(out))}",
    ]


def _refuse_to_overwrite(files: Sequence[Path]) -> None:
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} is there already; choose another --out or --name, or remove it")
        if not file.parent.is_dir():
            raise ConfigError(f"{file.parent}: there is no such folder; make it, or choose another --out")


def _write(splits: Sequence[Split], out: Path, text: str) -> None:
    from frs.data import write_coco

    try:
        for split in splits:
            write_coco(split.data, split.annotations)
        write_atomic(out, text)
    except BaseException:  # a full disk, Ctrl-C: half of it would keep the next call from writing the whole
        for file in (*(split.annotations for split in splits), out):
            file.unlink(missing_ok=True)
        raise


def _data_values(train: Split, val: Split, folder: Path) -> dict[str, Any]:
    return {
        "train_annotations": _path(train.annotations, folder),
        "train_images": _path(train.images, folder),
        "val_annotations": _path(val.annotations, folder),
        "val_images": _path(val.images, folder),
    }


def _model_values(train: Split, val: Split) -> dict[str, Any]:
    """What is chosen from the data, and why."""
    from frs.data import advise

    facts = advise.measure(train.data)
    size = advise.advise_input(train.data)
    anchors = advise.advise_anchors(train.data, size.height, size.width)
    flip, flip_reason = _flip([category.name for category in train.data.categories])
    covered = f"{_percent(anchors.covered)} of {anchors.boxes:,} boxes overlap one of them by an IoU of 0.5 or more"
    if anchors.covered < advise.COVERED:
        covered += "; none that was tried has over 1% more"
    return {
        "images": _count(facts.images, "image"),
        "objects": _count(facts.objects, "object"),
        "classes": _count(facts.classes, "class", "classes"),
        "input_reason": _comment(_input_reason(facts, size)),
        "height": size.height,
        "width": size.width,
        "smallest": f"{anchors.smallest:.0f}",
        "largest": f"{anchors.largest:.0f}",
        "anchor_reason": f"{covered}.",
        "levels": anchors.levels,
        "scale": anchors.scale,
        "octaves": anchors.octaves,
        "ratios": list(anchors.ratios),
        "flip": _yes(flip),
        "flip_reason": flip_reason,
        **_schedule_values(facts, size, anchors.octaves * len(anchors.ratios)),
        **_export_values(facts, val.data),
    }


def _schedule_values(facts: Facts, size: InputAdvice, anchors: int) -> dict[str, Any]:
    from frs.data import advise

    drop_empty = facts.empty > facts.images / 2
    used = facts.images - facts.empty if drop_empty else facts.images
    batch, memory = advise.advise_batch(used, size.height, size.width, facts.classes, anchors)
    steps_per_epoch = used // batch
    epochs = advise.advise_epochs(steps_per_epoch)
    steps = epochs * steps_per_epoch
    return {
        "drop_empty": _yes(drop_empty),
        "drop_reason": _drop_reason(facts, drop_empty),
        "batch": batch,
        "batch_reason": f"{steps_per_epoch:,} steps an epoch; the teacher's training takes about {memory:.1f} GB in float32.",
        "epochs": epochs,
        "epochs_reason": f"{steps:,} steps; aimed at: {advise.STEPS:,}, in {advise.EPOCHS[0]} to {advise.EPOCHS[1]} epochs.",
        "validate_every": max(1, epochs // 10),
        "warmup_steps": min(500, steps // 5),
    }


def _export_values(facts: Facts, val: CocoDataset) -> dict[str, Any]:
    from frs.data import advise

    candidates, detections = advise.advise_candidates(facts.densest)
    densest = (
        f"The densest image has {_count(facts.densest, 'object')}; {advise.CANDIDATES_EACH} candidates for each enter NMS, "
        "300 at least and 3,840 at most. Several are of one object: where objects stand close, too few cost AP."
    )
    if detections > 100:
        densest += " COCO's AP counts 100 detections an image, whatever this says."
    compared = val.first(ExportConfig().parity_images).images
    objects = sum(int((~image.crowd).sum()) for image in compared)
    parity = (
        f"Exported files are held against torch on {_count(len(compared), 'validation image')} with "
        f"{_count(objects, 'object')}; with fewer boxes compared than this, nothing is shown."
    )
    return {
        "candidates": candidates,
        "detections": detections,
        "candidates_reason": _comment(densest, 2),
        "parity_reason": _comment(parity, 2),
        "parity_boxes": min(GatesConfig().parity_min_boxes, max(1, objects)),
    }


def _split_reason(train: CocoDataset, val: CocoDataset) -> str:
    total = len(train.images) + len(val.images)
    text = (
        f"No validation images were given: {len(val.images):,} of the {total:,} were set aside and are never trained on. "
        "Files with the same bytes are on one side; to keep alike ones together too (frames of a video), split by hand."
    )
    trained, measured = ({int(n) for image in part.images for n in image.labels[~image.crowd]} for part in (train, val))
    alone = [train.categories[label].name for label in sorted(trained ^ measured)]
    return text + (f" Classes too rare to be on both sides: {_names(alone)}." if alone else "")


def _input_reason(facts: Facts, size: InputAdvice) -> str:
    from frs.data.advise import CLEAR_SIDE, LONG_SIDES

    outcome = {
        None: f"and {CLEAR_SIDE} were aimed at",
        "least": f"more than the {CLEAR_SIDE} aimed at, but a side of {LONG_SIDES[0]} is the least that is advised",
        "images": f"fewer than the {CLEAR_SIDE} aimed at, but the images have no more; enlarging them may still help",
        "most": f"fewer than the {CLEAR_SIDE} aimed at; rather than an input beyond {LONG_SIDES[1]}, cut the images into tiles",
    }
    shape = (
        "; upright and lying ones are mixed, so the input is square" if size.mixed else ", and the input has its shape"
    )
    return (
        f"The median image is {facts.width} x {facts.height} px (width x height){shape}. The median object is "
        f"{facts.median_side:.0f} px, taken as the root of its box's area; of {_names([facts.small_class])}, the smallest "
        f"class, a tenth are {facts.small_side:.0f} px or less. These are {size.small_side:.0f} px on the input, "
        f"{outcome[size.limit]}. Time goes with the input's area."
    )


def _drop_reason(facts: Facts, drop: bool) -> str:
    if not facts.empty:
        return "Every image has an object."
    empty = f"{facts.empty:,} of {_count(facts.images, 'image')} {'has' if facts.empty == 1 else 'have'} no object"
    if drop:
        return f"{empty}, more than half: left out, so that the steps go to the others."
    return f"{empty}: kept, they show what is none."


def _flip(names: Sequence[str]) -> tuple[bool, str]:
    for name in names:
        if {"left", "right"} & set(re.findall("[a-z]+", name.lower())) or re.fullmatch(r"\s*[A-Za-z0-9]\s*", name):
            return False, f"The mirror image of {_names([name])} could be of another class, or of none."
    return True, "Set it to false where a mirror image would be of another class, as with writing."


def quoted(text: str) -> str:
    """The text as a YAML string on one line, which nothing in it can end: neither a quote nor a line break."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _path(path: Path, folder: Path) -> str:
    """Relative where it lies below the configuration's folder, so that both can move together."""
    path = path.resolve()
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    return quoted(str(path if str(relative).startswith("~") else relative))  # "~" would be taken for a home


def _comment(text: str, indent: int = 0) -> str:
    """The text in as many lines of comment as it needs."""
    lines = textwrap.wrap(text, 116 - indent, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(f"# {line}" for line in lines)


def _names(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(quoted(name if len(name) <= 40 else name[:37] + "...") for name in names[:shown]) + more


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:g}%"


def _yes(value: bool) -> str:
    return "true" if value else "false"
