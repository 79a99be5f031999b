"""The one rule by which photographs become pixels, in training, validation, profiling and on the device.

Decoding, by Pillow: the EXIF orientation is applied; grey becomes three equal channels; transparency is composited over
black; palettes are resolved; 16-bit values lose their low byte, floating-point ones are taken for 0..255; everything
ends as 8-bit RGB.
Letterbox: scaled to fit (up or down) by bilinear interpolation with antialiasing, top-left, padded with 114; its
sides are rounded to whole pixels, a half to the even one.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from frs.errors import DataError

PADDING = 114
MAX_PIXELS = 100_000_000


def load_image(path: Path) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB.

    Raises DataError for a file that is missing, no image, cut short, or larger than 100 megapixels.
    """
    try:
        with _without_warning(), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels are more than the 100 megapixels that are read; tile "
                    "the image or scale it down"
                )
            image.load()
            return np.ascontiguousarray(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: more than the 100 megapixels that are read; tile the image or scale it down"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be read as an image ({reason}); replace it or leave it out") from None


@contextmanager
def _without_warning() -> Iterator[None]:
    """Pillow warns of large images below our own limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel, in 16 or in 32
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


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
    original_height, original_width = image.shape[:2]
    scale = min(height / original_height, width / original_width)
    content_height = min(height, max(1, round(original_height * scale)))
    content_width = min(width, max(1, round(original_width * scale)))
    if (content_height, content_width) != (original_height, original_width):
        resized = Image.fromarray(image).resize((content_width, content_height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    boxed = np.full((height, width, 3), PADDING, dtype=np.uint8)
    boxed[:content_height, :content_width] = image
    return boxed, Letterbox(scale, content_height, content_width, original_height, original_width)


def to_nchw(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """[(H, W, 3)] -> (N, 3, H, W), contiguous: what a predictor takes."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
