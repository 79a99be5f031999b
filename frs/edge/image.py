"""The one rule by which photographs become pixels, in training, validation, profiling and on the device.

Decoding, by Pillow: the EXIF orientation is applied; grey becomes three equal channels; transparency is composited over
black; palettes are resolved; 16-bit values lose their low byte, floating-point ones are taken for 0..255; of
several frames or pages the first is taken; everything ends as 8-bit RGB. Only the formats of `FORMATS` are read: Pillow
knows others, for one of which (EPS) it runs a program.
Letterbox: scaled to fit (up or down) by bilinear interpolation with antialiasing, top-left, padded with 114; its
sides are rounded to whole pixels, a half to the even one.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from frs.errors import DataError, SizeError

PADDING = 114
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 160_000_000
"""The largest aerial cameras have 151 megapixels. To decode one takes up to 20 bytes a pixel."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_at_a_time = threading.Lock()


def load_image(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB; any thread may call it. With `size`, the (H, W) that it must have, another one is refused.

    Raises DataError for a file that is missing, no image of `FORMATS`, cut short, or larger than 160 megapixels, and
    SizeError for one of another size; what the file's header tells is found before anything is decoded.
    """
    try:
        with _opened(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(path, f"{image.width} x {image.height} pixels are"))
            if size is not None and sorted(image.size) != sorted(size):
                raise SizeError(_another_size(path, image, size))
            image.load()
            turned = _turned(image)
            if size is not None and size != (turned.height, turned.width):
                raise SizeError(
                    _another_size(path, turned, size, "" if turned is image else ", its EXIF orientation applied")
                )
            return np.ascontiguousarray(_to_rgb(turned))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; correct its name or leave it out") from None
    except Image.DecompressionBombError:
        raise DataError(_too_large(path, "it has")) from None
    except MemoryError:
        raise DataError(f"{path}: there is not enough memory to decode it; tile the image or scale it down") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        reason = (
            f"no {', '.join(FORMATS)}"
            if isinstance(error, UnidentifiedImageError)
            else str(error) or type(error).__name__
        )
        raise DataError(f"{path}: cannot be read as an image ({reason}); replace it or leave it out") from None


def _too_large(path: Path, found: str) -> str:
    return (
        f"{path}: {found} more than the {MAX_PIXELS // 10**6} megapixels that are read; tile the image or scale it down"
    )


def _another_size(path: Path, image: Image.Image, size: tuple[int, int], how: str = "") -> str:
    return (
        f"{path}: it is {image.width} x {image.height} pixels{how}; the annotations say {size[1]} x {size[0]}, so that its "
        "boxes would lie elsewhere; correct the annotations or replace the image"
    )


def _opened(path: Path) -> Image.Image:
    with _without_warnings():
        return Image.open(path, formats=_formats())


@cache
def _formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _turned(image: Image.Image) -> Image.Image:
    with _without_warnings():
        method = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if method is None else image.transpose(method)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of large images below our own limit, and of EXIF entries that nobody asks for.

    The filters belong to the process, so that one thread at a time may change them.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel, in 16 or in 32
        grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in its input: `scale` pixels of input for a pixel of the image, from the top left corner.

    content_height, content_width: the part of the input that is not padding.
    """

    scale: float
    content_height: int
    content_width: int
    original_height: int
    original_width: int

    def to_input(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the image -> in pixels of the input."""
        return (boxes * self.scale).astype(np.float32)

    def to_original(self, boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the input -> in pixels of the image, brought inside it."""
        limits = np.array([self.original_width, self.original_height] * 2, dtype=np.float32)
        return (boxes / self.scale).clip(0, limits).astype(np.float32)


def letterbox(image: npt.NDArray[np.uint8], height: int, width: int) -> tuple[npt.NDArray[np.uint8], Letterbox]:
    """(H, W, 3) -> (height, width, 3), and how it lies there."""
    lies = _fitted(image, height, width)
    boxed = np.full((height, width, 3), PADDING, dtype=np.uint8)
    scaled = _scaled(image, lies)
    boxed[: lies.content_height, : lies.content_width] = image if scaled is None else np.asarray(scaled)
    return boxed, lies


def letterbox_batch(
    images: Sequence[npt.NDArray[np.uint8]], height: int, width: int
) -> tuple[npt.NDArray[np.uint8], list[Letterbox]]:
    """[(H, W, 3)] of any sizes -> (N, 3, height, width), what a predictor takes, and how each lies there.

    The pixels of `letterbox` and `to_nchw`, channel by channel out of Pillow and into their place.
    """
    pixels = np.empty((len(images), 3, height, width), dtype=np.uint8)
    mappings = [_fitted(image, height, width) for image in images]
    for target, image, lies in zip(pixels, images, mappings, strict=True):
        bottom, right = lies.content_height, lies.content_width
        scaled = _scaled(image, lies)
        bands = np.moveaxis(image, 2, 0) if scaled is None else scaled.split()
        for plane, band in zip(target, bands, strict=True):
            plane[:bottom, :right] = band
        target[:, bottom:] = PADDING
        target[:, :bottom, right:] = PADDING
    return pixels, mappings


def _fitted(image: npt.NDArray[np.uint8], height: int, width: int) -> Letterbox:
    original_height, original_width = image.shape[:2]
    scale = min(height / original_height, width / original_width)
    content_height = min(height, max(1, round(original_height * scale)))
    content_width = min(width, max(1, round(original_width * scale)))
    return Letterbox(scale, content_height, content_width, original_height, original_width)


def _scaled(image: npt.NDArray[np.uint8], lies: Letterbox) -> Image.Image | None:
    """None where it fits as it is."""
    if (lies.content_height, lies.content_width) == (lies.original_height, lies.original_width):
        return None
    return Image.fromarray(image).resize((lies.content_width, lies.content_height), Image.Resampling.BILINEAR)


def to_nchw(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """[(H, W, 3)], of one size -> (N, 3, H, W), contiguous: what a predictor takes."""
    pixels = np.empty((len(images), 3, *images[0].shape[:2]), dtype=np.uint8)
    for target, image in zip(pixels, images, strict=True):  # image by image: numpy transposes a stack four times slower
        target[:] = image.transpose(2, 0, 1)
    return pixels
