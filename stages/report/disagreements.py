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
SHOWN = 15
"""Boxes of a kind in a picture: with more nothing could be told."""


def draw_disagreements(context: Context, gates: Iterable[Gate]) -> Mapping[str, tuple[Picture, ...]]:
    """Label of each artifact that failed a gate -> pictures of its worst images, written as `parity/<label>-<number>.png`."""
    from frs.edge.draw import side_by_side

    kept = read_json(context.inputs["worst"])
    failed = {about(row) for row in gates if not row["passed"]}
    drawn = {
        label: tuple(_pictures(context, label, shown)) for label, shown in kept.items() if label in failed and shown
    }
    for picture in (picture for pictures in drawn.values() for picture in pictures):
        context.outputs["disagreements"].mkdir(exist_ok=True)
        side_by_side(picture.panels).save(context.outputs["disagreements"].parent / picture.file)
    return drawn


def _pictures(context: Context, label: str, shown: Sequence[Mapping[str, Any]]) -> Iterable[Picture]:
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
        panels = tuple(_panels(canvas, factor, torch, file, compared))
        # The name is ours: an image's may lead anywhere.
        yield Picture(f"{FOLDER}/{label}-{number}.png", image.file_name, "", panels)


def _panels(
    canvas: npt.NDArray[np.uint8], factor: float, torch: Detections, file: Detections, compared: Compared
) -> Iterable[tuple[str, Image]]:
    """Both boxes of the pairs that differ most, and of the boxes without a partner those of the highest scores."""
    import numpy as np

    worst = np.argsort(-compared.differences, kind="stable")[:SHOWN]
    pairs = torch.boxes[compared.left[worst]], file.boxes[compared.right[worst]]
    title = f"pairs: {len(compared.left)}{_of_those(len(compared.left))}"
    yield title, _both(canvas, factor, *pairs)
    # Detections come best first.
    alone = [np.delete(side.boxes, taken, axis=0) for side, taken in ((torch, compared.left), (file, compared.right))]
    title = f"alone: {len(alone[0])} of torch, {len(alone[1])} of the file{_of_those(*map(len, alone))}"
    yield title, _both(canvas, factor, *(boxes[:SHOWN] for boxes in alone))


def _of_those(*counts: int) -> str:
    return f"; at most {SHOWN} shown" if max(counts) > SHOWN else ""


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
