"""Pictures for people: boxes on a photograph, and a score map over it. Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Matplotlib's "inferno" at nine equal steps: dark and bright at the ends, readable in grey.
_RAMP = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip


def draw_boxes(
    image: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.floating],
    colour: Colour,
    labels: Sequence[str] | None = None,
    *,
    dashed: bool = False,
) -> Image.Image:
    """The image (H, W, 3) with boxes (N, 4) xyxy in its pixels, and a label above each where given."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    width = max(1, round(min(picture.size) / 160))
    rectangle = _dashed if dashed else ImageDraw.ImageDraw.rectangle
    font = ImageFont.load_default(max(10, round(min(picture.size) / 40)))
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        rectangle(draw, (x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=width)
        if labels is not None:
            label = " ".join(labels[i].split())  # a name may hold line breaks
            _, top, right, _ = draw.textbbox((x0, y0), label, font=font, anchor="lb")
            # Inside the picture too where the box is at its edge.
            place = (max(1, x0 + min(0, picture.width - 2 - right)), y0 + max(0, 1 - top))
            left, top, right, bottom = draw.textbbox(place, label, font=font, anchor="lb")
            draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            draw.text(place, label, fill=(0, 0, 0), font=font, anchor="lb")
    return picture


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], *, outline: Colour, width: int) -> None:
    """A rectangle of dashes, each three widths long and three apart."""
    x0, y0, x1, y1 = box
    dash = 3 * width
    for start in np.arange(x0, x1, 2 * dash):
        for y in (y0, y1):
            draw.line((start, y, min(start + dash, x1), y), fill=outline, width=width)
    for start in np.arange(y0, y1, 2 * dash):
        for x in (x0, x1):
            draw.line((x, start, x, min(start + dash, y1)), fill=outline, width=width)


def draw_heat(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating], opacity: float = 0.65) -> Image.Image:
    """The image (H, W, 3), greyed, under a map (H, W) of values in 0..1."""
    places = np.linspace(0, len(_RAMP) - 1, 256)
    ramp = np.stack([np.interp(places, np.arange(len(_RAMP)), _RAMP[:, channel]) for channel in range(3)], axis=-1)
    colours = Image.fromarray(ramp.astype(np.uint8)[(np.clip(heat, 0.0, 1.0) * 255).astype(np.uint8)])
    return Image.blend(Image.fromarray(image).convert("L").convert("RGB"), colours, opacity)


def side_by_side(panels: Sequence[tuple[str, Image.Image]], height: int = 384) -> Image.Image:
    """Pictures in a row, scaled to one height, each under its title."""
    gap, bar = 8, 26
    font = ImageFont.load_default(16)
    scaled = [
        (title, panel.resize((round(panel.width * height / panel.height), height), Image.Resampling.BICUBIC))
        for title, panel in panels
    ]
    width = sum(panel.width for _, panel in scaled) + gap * (len(scaled) - 1)
    sheet = Image.new("RGB", (width, height + bar), "white")
    draw = ImageDraw.Draw(sheet)
    x = 0
    for title, panel in scaled:
        sheet.paste(panel, (x, bar))
        draw.text((x + 2, bar / 2), title, fill=(30, 30, 30), font=font, anchor="lm")
        x += panel.width + gap
    return sheet
