"""Validation pictures: what is there, what teacher and student see, and where the teacher's features are rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.stage import Context
from stages.common import dataset, read_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from frs.data import CocoImage

TRUTH, TEACHER, STUDENT = (255, 255, 255), (255, 196, 0), (0, 229, 255)


def draw_pictures(context: Context) -> list[tuple[str, str]]:
    """Write the pictures and return (path in the run folder, name of the image) of each.

    The images are those with the most, the median and the fewest boxes, and so on evenly between: chosen by a rule,
    not by eye.
    """
    from frs.detectors import load_detector
    from frs.edge.draw import draw_boxes, draw_heat, side_by_side
    from frs.edge.image import load_image

    config = context.config.report
    data = dataset(context, "val")
    teacher = load_detector(context.inputs["teacher"]).eval()
    found = {model: _boxes(context, model) for model in ("teacher", "student")}
    pictures = []
    for number, image in enumerate(_spread(data.images, config.pictures), start=1):
        pixels = load_image(data.path(image))
        panels = [
            (f"ground truth ({len(image.boxes)})", draw_boxes(pixels, image.boxes, TRUTH)),
            *(
                (f"{model} ({len(boxes)})", draw_boxes(pixels, boxes, colour))
                for model, colour in (("teacher", TEACHER), ("student", STUDENT))
                for boxes in [found[model].get(image.id, _none())]
            ),
            ("feature richness", draw_heat(pixels, _richness(context, teacher, pixels))),
        ]
        name = f"{number}.png"
        side_by_side(panels).save(context.outputs["pictures"] / name)
        pictures.append((f"pictures/{name}", image.file_name))
    return pictures


def _spread(images: tuple[CocoImage, ...], count: int) -> list[CocoImage]:
    ranked = sorted((i for i in images if len(i.boxes)), key=lambda image: (-len(image.boxes), image.id))
    count = min(count, len(ranked))
    last = len(ranked) - 1
    return [ranked[round(k * last / max(1, count - 1))] for k in range(count)]


def _boxes(context: Context, model: str) -> dict[int, npt.NDArray[np.float32]]:
    """image id -> (N, 4) xyxy in its pixels of the detections that are drawn."""
    import numpy as np

    rows: list[dict[str, Any]] = read_json(context.inputs["predictions"] / f"{model}-torch-fp32-reference.json")
    grouped: dict[int, list[list[float]]] = {}
    for row in rows:
        if row["score"] >= context.config.report.score:
            x, y, w, h = row["bbox"]
            grouped.setdefault(row["image_id"], []).append([x, y, x + w, y + h])
    return {image: np.array(boxes, dtype=np.float32) for image, boxes in grouped.items()}


def _none() -> npt.NDArray[np.float32]:
    import numpy as np

    return np.zeros((0, 4), dtype=np.float32)


def _richness(context: Context, teacher: Any, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The score S of every level, brought to the image's size; the highest of them at each pixel."""
    import torch
    from torch.nn.functional import interpolate

    from frs.distill import feature_richness
    from frs.edge.image import letterbox, to_nchw

    size = context.config.input
    boxed, mapping = letterbox(pixels, size.height, size.width)
    with torch.inference_mode():
        features = teacher.features(teacher.normalize(torch.from_numpy(to_nchw([boxed]))))
        levels = [
            interpolate(feature_richness(logits)[:, None], (size.height, size.width), mode="bilinear")
            for logits in teacher.class_logits(features)
        ]
        highest = torch.stack(levels).amax(0)[:, :, : mapping.content_height, : mapping.content_width]
        fitted = interpolate(highest, pixels.shape[:2], mode="bilinear")
    heat: npt.NDArray[np.float32] = fitted[0, 0].numpy()
    return heat
