"""The quick-start's data: aerial photographs with annotated trees, out of the wheel `deepforest==2.1.0` (MIT).

The wheel is read as the zip that it is and never imported. Two photographs are cut into tiles; the lower part of each is
for validation, and no pixel is in both splits.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from frs.data.coco import Category, CocoDataset, CocoImage, write_coco
from frs.packages import Wheel, check

ARCHIVE = Wheel(
    requirement="deepforest==2.1.0",
    file="deepforest-2.1.0-py3-none-any.whl",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
)
PHOTOGRAPHS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop")
TREE = Category(1, "Tree")


def build_trees(
    archive: Path,
    out: Path,
    *,
    tile: int,
    stride: int,
    validation_fraction: float,
    min_visible: float,
    limit: int | None = None,
) -> None:
    """Write out/train.json, out/val.json and the tiles in out/images; the same arguments give the same bytes.

    tile, stride: in pixels of the photograph; validation tiles lie edge to edge. A box that a tile shows less than
    `min_visible` of is dropped; tiles without a tree are kept. limit: this many tiles of each split, evenly spread.
    Raises PackageError for another archive.
    """
    check(ARCHIVE, archive)
    photographs: dict[str, npt.NDArray[np.uint8]] = {}
    tiles: dict[str, list[CocoImage]] = {"train": [], "val": []}
    for name in PHOTOGRAPHS:
        photographs[name], boxes = _read(archive, name)
        height, width = photographs[name].shape[:2]
        border = round(height * (1 - validation_fraction))
        places = {
            "train": (_starts(0, border, tile, stride), _starts(0, width, tile, stride)),
            "val": (_starts(border, height, tile, tile), _starts(0, width, tile, tile)),
        }
        for split, (ys, xs) in places.items():
            for y, x in ((y, x) for y in ys for x in xs):
                file = f"{split}/{name}_{x:04d}_{y:04d}.png"
                tiles[split].append(_tile(file, boxes, x, y, tile, min_visible))
    for split, all_tiles in tiles.items():
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        kept = [_numbered(image, i + 1) for i, image in enumerate(_spread(all_tiles, limit))]
        for image in kept:
            _save(image.file_name, photographs, out / "images", tile)
        write_coco(CocoDataset(out / "images", tuple(kept), (TREE,)), out / f"{split}.json")


def _read(archive: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The photograph (H, W, 3) and its boxes (N, 4) xyxy."""
    with zipfile.ZipFile(archive) as wheel:
        image = np.asarray(Image.open(io.BytesIO(wheel.read(f"deepforest/data/{name}.png"))).convert("RGB"))
        root = ElementTree.fromstring(wheel.read(f"deepforest/data/{name}.xml"))
    corners = [
        [float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")
    ]
    return image, np.array(corners, dtype=np.float32)


def _starts(first: int, end: int, tile: int, stride: int) -> range:
    """Where tiles begin so that each lies within [first, end)."""
    return range(first, end - tile + 1, stride)


def _tile(file: str, boxes: npt.NDArray[np.float32], x: int, y: int, tile: int, min_visible: float) -> CocoImage:
    shifted = boxes - np.array([x, y, x, y], dtype=np.float32)
    clipped = shifted.clip(0, tile)
    visible = _area(clipped) / _area(shifted)
    kept = clipped[(visible >= min_visible) & (_area(clipped) > 0)]
    count = len(kept)
    return CocoImage(
        id=0,
        file_name=file,
        width=tile,
        height=tile,
        boxes=kept,
        labels=np.zeros(count, dtype=np.int64),
        crowd=np.zeros(count, dtype=np.bool_),
        area=_area(kept).astype(np.float64),
    )


def _area(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    area: npt.NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return area


def _spread(tiles: list[CocoImage], limit: int | None) -> Iterator[CocoImage]:
    """All, or `limit` of those with trees (as many as there are), evenly over the photographs."""
    if limit is None:
        yield from tiles
        return
    full = [tile for tile in tiles if len(tile.boxes)]
    count = min(limit, len(full))
    yield from (full[i * len(full) // count] for i in range(count))


def _numbered(image: CocoImage, number: int) -> CocoImage:
    return replace(image, id=number)


def _save(file: str, photographs: dict[str, npt.NDArray[np.uint8]], folder: Path, tile: int) -> None:
    name, x, y = Path(file).stem.rsplit("_", 2)
    cut = photographs[name][int(y) : int(y) + tile, int(x) : int(x) + tile]
    Image.fromarray(cut).save(folder / file)
