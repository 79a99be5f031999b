"""Validation pictures: where the teacher's features are rich, and where the student does better or worse than its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.stage import Context
from stages.common import dataset, read_json
from stages.validate import measured_file, models, resizes, scored_edge

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from frs.data import CocoDataset, CocoImage
    from frs.detectors import Detector
    from frs.evaluation.images import ImageMatches

    Matches = Mapping[str, Mapping[int, ImageMatches]]

# Okabe and Ito's colours, told apart by the colour-blind too; what was missed is dashed besides.
COLOURS = {"found": (86, 180, 233), "missed": (240, 228, 66), "false": (255, 94, 0)}
TRUTH = (255, 255, 255)
_SMALLEST, _LARGEST = 640, 960
"""Pixels of the longer side: a photograph with fewer is enlarged before it is drawn on, so that lines are thin beside it, and
one with more is reduced: nobody sees them, and dozens of panels are in memory at once."""
_FAINT = 1e-6
"""A map whose highest score is below this is shown as empty."""


@dataclass(frozen=True)
class Picture:
    """One photograph in several panels (title, image); file: under the run folder; image: the photograph's name; caption:
    what is to be said of all panels, if anything."""

    file: str
    image: str
    caption: str
    panels: tuple[tuple[str, Image], ...]


@dataclass(frozen=True)
class Pictures:
    """All pictures of a report. thresholds: model -> score below which its boxes are not drawn. disagreements: label of each
    artifact that failed a gate -> its worst images, with torch's boxes and its own."""

    maps: tuple[Picture, ...]
    wins: tuple[Picture, ...]
    losses: tuple[Picture, ...]
    thresholds: Mapping[str, float]
    disagreements: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)


def draw_pictures(context: Context) -> Pictures:
    """Draw them, and write each as `pictures/<name>.png`, its panels side by side."""
    from frs.edge.draw import side_by_side
    from frs.evaluation.images import best_threshold, match_images

    data = dataset(context, "val")
    matches = {
        model: match_images(
            context.inputs["val"], read_json(context.inputs["predictions"] / measured_file(context.config, model))
        )
        for model in models(context.config)
    }
    given = context.config.report.score
    thresholds = {model: best_threshold(found) if given is None else given for model, found in matches.items()}
    maps = _maps(context, data, matches, thresholds)
    better, worse = _extremes(data.images, matches, thresholds, context.config.report.pictures)
    pictures = Pictures(
        maps,
        _contrasts("win", data, better, matches, thresholds),
        _contrasts("loss", data, worse, matches, thresholds),
        thresholds,
    )
    for picture in (*pictures.maps, *pictures.wins, *pictures.losses):
        side_by_side(picture.panels).save(context.outputs["pictures"].parent / picture.file)
    return pictures


def _maps(
    context: Context, data: CocoDataset, matches: Matches, thresholds: Mapping[str, float]
) -> tuple[Picture, ...]:
    """The images with the most, the median and the fewest objects, and so on evenly between: by a rule, not by eye."""
    from frs.detectors import load_detector
    from frs.edge.draw import draw_boxes, draw_heat

    teacher = load_detector(context.inputs["teacher"]).eval()
    drawn = []
    for number, image in enumerate(spread(data.images, context.config.report.pictures), start=1):
        pixels = data.load(image)
        canvas, factor = resized(pixels)
        truth = image.boxes[~image.crowd]
        richness = _richness(context, teacher, pixels, canvas.shape[:2])
        highest = float(richness.max())
        panels = (
            (f"ground truth: {len(truth)}", draw_boxes(canvas, factor * truth, TRUTH)),
            *(panel(m, canvas, factor, matches[m][image.id], thresholds[m]) for m in ("teacher", "student")),
            (f"feature richness: 0 to {highest:.2g}", draw_heat(canvas, richness / max(highest, _FAINT))),
        )
        drawn.append(Picture(f"pictures/{number}.png", image.file_name, "", panels))
    return tuple(drawn)


def spread(images: Sequence[CocoImage], count: int) -> list[CocoImage]:
    ranked = sorted((i for i in images if len(i.boxes)), key=lambda image: (-len(image.boxes), image.id))
    count = min(count, len(ranked))
    last = len(ranked) - 1
    return [ranked[round(k * last / max(1, count - 1))] for k in range(count)]


def _extremes(
    images: Sequence[CocoImage], matches: Matches, thresholds: Mapping[str, float], count: int
) -> tuple[list[CocoImage], list[CocoImage]]:
    """The images on which the student makes fewest and most errors more than the control; none where both make as many."""
    if "control" not in matches:
        return [], []
    change = {
        image.id: matches["student"][image.id].tally(thresholds["student"]).errors
        - matches["control"][image.id].tally(thresholds["control"]).errors
        for image in images
    }
    ranked = sorted(images, key=lambda image: (change[image.id], image.id))
    better = [image for image in ranked if change[image.id] < 0][:count]
    worse = [image for image in reversed(ranked) if change[image.id] > 0][:count]
    return better, worse


def _contrasts(
    kind: str,
    data: CocoDataset,
    images: Sequence[CocoImage],
    matches: Matches,
    thresholds: Mapping[str, float],
) -> tuple[Picture, ...]:
    drawn = []
    for number, image in enumerate(images, start=1):
        canvas, factor = resized(data.load(image))
        panels = tuple(panel(m, canvas, factor, matches[m][image.id], thresholds[m]) for m in ("control", "student"))
        drawn.append(
            Picture(f"pictures/{kind}-{number}.png", image.file_name, _change(image, matches, thresholds), panels)
        )
    return tuple(drawn)


def _change(image: CocoImage, matches: Matches, thresholds: Mapping[str, float]) -> str:
    errors = {model: matches[model][image.id].tally(thresholds[model]).errors for model in ("control", "student")}
    return f"{errors['student']} errors of the student, {errors['control']} of the control"


def panel(
    model: str, canvas: npt.NDArray[np.uint8], factor: float, found: ImageMatches, threshold: float
) -> tuple[str, Image]:
    """canvas: the photograph in the size in which it is shown, `factor` times its own."""
    import numpy as np

    from frs.edge.draw import draw_boxes

    kept = found.scores >= threshold
    for colour, boxes in (
        ("missed", found.objects[found.found_at < threshold]),
        ("false", found.boxes[kept & ~found.hit]),
        ("found", found.boxes[kept & found.hit]),
    ):
        picture = draw_boxes(canvas, factor * boxes, COLOURS[colour], dashed=colour == "missed")
        canvas = np.asarray(picture)
    tally = found.tally(threshold)
    return f"{model}: {tally.found} found, {tally.missed} missed, {tally.false} false", picture


def resized(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], float]:
    """The photograph, enlarged by a whole factor where it is small, reduced where it is large; and the factor."""
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    longer = max(height, width)
    factor = float(-(-_SMALLEST // longer)) if longer < _SMALLEST else min(1.0, _LARGEST / longer)
    size = max(1, round(factor * width)), max(1, round(factor * height))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)), factor


def _richness(
    context: Context, teacher: Detector, pixels: npt.NDArray[np.uint8], shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """The score S of every level, brought to a picture's (height, width); the highest of them at each pixel."""
    import torch
    from torch.nn.functional import interpolate

    from frs.distill import feature_richness

    with torch.inference_mode():
        images, (height, width) = _given(context, teacher, pixels)
        features = teacher.features(images)
        levels = [
            interpolate(feature_richness(logits)[:, None], images.shape[2:], mode="bilinear")
            for logits in teacher.class_logits(features)
        ]
        highest = torch.stack(levels).amax(0)[:, :, :height, :width]
        fitted = interpolate(highest, shape, mode="bilinear")
    heat: npt.NDArray[np.float32] = fitted[0, 0].numpy()
    return heat


def _given(context: Context, teacher: Detector, pixels: npt.NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
    """What the teacher takes, (1, 3, H, W), resized as the student was trained; the (height, width) that is no padding."""
    import torch
    from torch.nn.functional import pad

    from frs.data.resize import padded
    from frs.edge.image import letterbox, to_nchw

    if resizes(context.config)[0] == "letterbox":
        size = context.config.input
        boxed, mapping = letterbox(pixels, size.height, size.width)
        images = teacher.normalize(torch.from_numpy(to_nchw([boxed])))
        return images, (mapping.content_height, mapping.content_width)
    edge = scored_edge(context.config)
    scaled, placed = edge(pixels, edge.short_sides[0])
    high, wide = padded(placed.height, placed.width)
    images = teacher.normalize(torch.from_numpy(to_nchw([scaled])))
    return pad(images, (0, wide - placed.width, 0, high - placed.height)), (placed.height, placed.width)
