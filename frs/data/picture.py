"""A picture of what is wrong with the boxes of an image. Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from frs.data.faults import Fault

_SMALLEST, _LARGEST = 800, 1400  # the longer side of the canvas, in pixels of the picture
_VISIBLE = 8  # no marked box is drawn smaller, in pixels of the picture
_LISTED = 12
_LEGEND = "red: refused; amber: mended when it is read; white: can be used; grey: beyond the image"
_TEXT, _LINE = 15, 24
_PAPER, _BEYOND, _INK, _FINE = (255, 255, 255), (70, 74, 80), (25, 25, 25), (255, 255, 255)
_GRAVE, _MENDED = (225, 30, 60), (255, 170, 0)


def draw_faults(
    pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.floating], faults: Sequence[Fault], title: str
) -> Image.Image:
    """An image (H, W, 3) on a canvas that is grey where the image ends, so that boxes beyond it can be seen.

    boxes: (n, 4) xyxy, those that can be used, thin and white. The boxes of `faults` are numbered, red, or amber where they
    are mended; the first of them are explained below.
    """
    marked = [(fault, fault.box) for fault in faults if fault.box is not None]
    view = _View.around(pixels, [box for _, box in marked])
    canvas = Image.new("RGB", view.size, _BEYOND)
    x, y = view.at(0, 0)
    right, bottom = view.at(pixels.shape[1], pixels.shape[0])
    canvas.paste(Image.fromarray(pixels).resize((right - x, bottom - y), Image.Resampling.BICUBIC), (x, y))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    for x0, y0, x1, y1 in boxes.tolist():
        draw.rectangle((*view.at(x0, y0), *view.at(x1, y1)), outline=_FINE)
    places = [view.visible(box) for _, box in marked]
    for place, (fault, _) in zip(places, marked, strict=True):
        draw.rectangle(place, outline=_colour(fault), width=3)
    for number, (place, (fault, _)) in enumerate(zip(places, marked, strict=True), start=1):
        _tag(draw, font, str(number), place, canvas.size, _colour(fault))
    return _explained(canvas, font, title, [fault for fault, _ in marked])


@dataclass(frozen=True)
class _View:
    """How the canvas lies over the image: `left` and `top` pixels of it come before its first; each is `scale` of ours."""

    left: float
    top: float
    scale: float
    size: tuple[int, int]

    @classmethod
    def around(cls, pixels: npt.NDArray[np.uint8], boxes: Sequence[tuple[float, ...]]) -> _View:
        """The image, and of the boxes beyond it as much as lies within half an image."""
        height, width = pixels.shape[:2]
        margin, most = 0.03 * max(height, width), 0.5 * max(height, width)
        reach = [(-x, -y, x + w - width, y + h - height) for x, y, w, h in boxes]
        left, top, right, bottom = (margin + min(max(0.0, *side), most) for side in zip(*reach, strict=True))
        across, down = left + width + right, top + height + bottom
        scale = min(max(max(across, down), _SMALLEST), _LARGEST) / max(across, down)
        return cls(left, top, scale, (round(across * scale), round(down * scale)))

    def at(self, x: float, y: float) -> tuple[int, int]:
        return round((x + self.left) * self.scale), round((y + self.top) * self.scale)

    def visible(self, box: tuple[float, ...]) -> tuple[int, int, int, int]:
        """A box [x, y, width, height] in the canvas, brought to its edge where it is farther off, and never too small."""
        x, y, w, h = box
        corners = [self.at(x, y), self.at(x + w, y + h)]
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        x0, x1 = (min(max(value, 1), self.size[0] - 2 - _VISIBLE) for value in (x0, x1))
        y0, y1 = (min(max(value, 1), self.size[1] - 2 - _VISIBLE) for value in (y0, y1))
        return x0, y0, max(x1, x0 + _VISIBLE), max(y1, y0 + _VISIBLE)


def _tag(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: str,
    place: tuple[int, int, int, int],
    size: tuple[int, int],
    colour: tuple[int, int, int],
) -> None:
    """A number on the corner of a box, inside the canvas."""
    width, height = round(font.getlength(text)) + 8, _TEXT + 6
    x = min(place[0], size[0] - width - 1)
    y = place[1] - height if place[1] >= height else min(place[3], size[1] - height - 1)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + width / 2, y + height / 2), text, fill=_INK if colour == _MENDED else _PAPER, font=font, anchor="mm")


def _explained(
    canvas: Image.Image,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    title: str,
    faults: Sequence[Fault],
) -> Image.Image:
    """The canvas between its title and a line for each of the first faults."""
    lines = [
        (f"{number}   {fault.where.partition(' of image')[0]}: {fault.message.partition(';')[0]}", _colour(fault))
        for number, fault in enumerate(faults[:_LISTED], start=1)
    ]
    if len(faults) > _LISTED:
        lines.append((f"and {len(faults) - _LISTED} more", _INK))
    head = 2 * _LINE + 8
    width = max(canvas.width, _SMALLEST)  # a tall image is too narrow for the words
    sheet = Image.new("RGB", (width, head + canvas.height + _LINE * len(lines) + 8), _PAPER)
    sheet.paste(canvas, ((width - canvas.width) // 2, head))
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate((title, _LEGEND)):
        y = 4 + _LINE * (row + 0.5)
        draw.text((10, y), _fitted(line, font, width), fill=_INK, font=font, anchor="lm")
    for row, (line, colour) in enumerate(lines):
        y = head + canvas.height + 4 + _LINE * (row + 0.5)
        draw.rectangle((10, y - 6, 22, y + 6), fill=colour)
        draw.text((32, y), _fitted(line, font, width - 32), fill=_INK, font=font, anchor="lm")
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """One printable line, cut where it would leave the picture."""
    line = "".join(character if character.isprintable() else "?" for character in text[:400])
    if font.getlength(line) <= width - 20:
        return line
    while font.getlength(f"{line}...") > width - 20:
        line = line[:-1]
    return f"{line}..."


def _colour(fault: Fault) -> tuple[int, int, int]:
    return _MENDED if fault.mended else _GRAVE
