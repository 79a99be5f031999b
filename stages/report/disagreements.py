"""Where a file that failed a gate disagrees most with torch: the boxes of both on the photograph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.stage import Context
from stages.common import dataset, read_json
from stages.report.gates import Gate, about
from stages.report.pictures import Picture, resized

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from frs.edge.predictor import Detections
    from frs.evaluation.parity import Compared

FOLDER = "parity"
# Okabe and Ito's, as the other pictures.
TORCH, FILE = (86, 180, 233), (255, 94, 0)


def draw_disagreements(
    context: Context, gates: Iterable[Gate], thresholds: Mapping[str, float]
) -> Mapping[str, tuple[Picture, ...]]:
    """Label of each artifact that failed a gate -> pictures of its worst images, written as `parity/<label>-<number>.png`.

    thresholds: model -> the score that a box must have on one side to be drawn.
    """
    from frs.edge.draw import side_by_side

    kept = read_json(context.inputs["worst"])
    failed = {about(row) for row in gates if not row["passed"]}
    drawn = {
        label: tuple(_pictures(context, label, shown, thresholds[label.partition("_")[0]]))
        for label, shown in kept.items()
        if label in failed and shown
    }
    for picture in (picture for pictures in drawn.values() for picture in pictures):
        context.outputs["disagreements"].mkdir(exist_ok=True)
        side_by_side(picture.panels).save(context.outputs["disagreements"].parent / picture.file)
    return drawn


def _pictures(context: Context, label: str, shown: Sequence[Mapping[str, Any]], threshold: float) -> Iterable[Picture]:
    from frs.evaluation.parity import by_image, compare

    data = dataset(context, "val")
    images = {image.id: image for image in data.images}
    categories = [category.id for category in data.categories]
    config = context.config.export
    for number, each in enumerate(shown, start=1):
        image = images[each["image_id"]]
        torch, file = (by_image(each[side], [image.id], categories)[image.id] for side in ("torch", "file"))
        compared = compare(torch, file, score_threshold=config.score_threshold, detections=config.detections)
        canvas, factor = resized(data.load(image))
        panels = tuple(_panels(canvas, factor, torch, file, compared, threshold))
        # The name is ours: an image's may lead anywhere.
        yield Picture(f"{FOLDER}/{label}-{number}.png", image.file_name, "", panels)


def _panels(
    canvas: npt.NDArray[np.uint8],
    factor: float,
    torch: Detections,
    file: Detections,
    compared: Compared,
    threshold: float,
) -> Iterable[tuple[str, Image]]:
    """Both sets of boxes that agree, and both of those that do not; a box is drawn where it, or its partner, is clear."""
    import numpy as np

    clear = np.maximum(torch.scores[compared.left], file.scores[compared.right]) >= threshold
    pairs = torch.boxes[compared.left[clear]], file.boxes[compared.right[clear]]
    yield f"{clear.sum()} boxes with a counterpart", _both(canvas, factor, *pairs)
    alone = (
        np.delete(side.boxes, taken, axis=0)[np.delete(side.scores, taken) >= threshold]
        for side, taken in ((torch, compared.left), (file, compared.right))
    )
    here, there = alone
    title = f"without: {len(here)} of torch, {len(there)} of the file"
    yield title, _both(canvas, factor, here, there)


def _both(
    canvas: npt.NDArray[np.uint8],
    factor: float,
    torch: npt.NDArray[np.floating],
    file: npt.NDArray[np.floating],
) -> Image:
    import numpy as np

    from frs.edge.draw import draw_boxes

    solid = np.asarray(draw_boxes(canvas, factor * torch, TORCH))
    return draw_boxes(solid, factor * file, FILE, dashed=True)
