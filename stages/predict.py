"""`frs-pipeline predict`: an exported file on images, drawn and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frs.errors import DataError, ExportError

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Of the files in a folder that are taken for images."""
BOX_COLOUR = (255, 196, 0)
_DRAWN_BY = "frs-pipeline predict"


def run_predict(artifact: Path, images: Sequence[Path], out: Path, score: float) -> Iterator[dict[str, Any]]:
    """Detect in each image, write it with its boxes to `out/<name>.png`, and yield what was found.

    A folder stands for the images that lie in it, by name. Boxes are [x, y, width, height] in pixels of the image, as in
    COCO; detections below `score` are left out. An image that cannot be read has an "error" in place of them. Raises FrsError
    for a file that is not ours, and where a drawing would replace what is no drawing.
    """
    import numpy as np

    from frs.edge.draw import draw_boxes
    from frs.edge.image import letterbox, load_image, to_nchw
    from frs.edge.sessions import open_session

    found_images = list(_images(images))
    targets = _targets(found_images, out)
    given = {path.resolve() for path in found_images}
    for target in targets:
        if target.resolve() in given or (target.exists() and not _is_drawing(target)):
            raise DataError(f"--out {out}: a drawing would replace the image {target}; choose another folder")
    session = open_session(artifact)
    info = session.info
    out.mkdir(parents=True, exist_ok=True)
    for path, target in zip(found_images, targets, strict=True):
        try:
            image = load_image(path)
        except DataError as error:
            yield {"image": str(path), "error": str(error)}
            continue
        boxed, mapping = letterbox(image, info.height, info.width)
        found = session.predict(to_nchw([boxed] * (session.batch or 1)))[0]
        boxes = mapping.to_original(found.boxes)
        if not (np.isfinite(boxes).all() and np.isfinite(found.scores).all()):
            raise ExportError(
                f"{artifact}: on {path} it computes NaN or infinity; export it in fp32, or train it again"
            )
        kept = [i for i in range(len(found)) if found.scores[i] >= score]
        names = [info.classes[found.labels[i]] for i in kept]
        labels = [f"{name} {found.scores[i]:.2f}" for name, i in zip(names, kept, strict=True)]
        draw_boxes(image, boxes[kept], BOX_COLOUR, labels).save(target, pnginfo=_mark())
        yield {
            "image": str(path),
            "drawn": str(target),
            "detections": [
                {
                    "category_id": info.category_ids[found.labels[i]],
                    "class": name,
                    "score": round(float(found.scores[i]), 4),
                    "bbox": [round(float(v), 2) for v in (*boxes[i, :2], *(boxes[i, 2:] - boxes[i, :2]))],
                }
                for name, i in zip(names, kept, strict=True)
            ],
        }


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
        if not inside:
            raise DataError(f"{path}: there is no image in this folder ({', '.join(sorted(SUFFIXES))}); name another")
        yield from inside


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """A file name for each image; two images of one name do not overwrite each other."""
    taken: dict[str, None] = {}
    for path in images:
        name, count = path.stem, 1
        while name in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken[name] = None
    return [out / f"{name}.png" for name in taken]


def _mark() -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", _DRAWN_BY)
    return mark


def _is_drawing(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == _DRAWN_BY
    except OSError:
        return False
