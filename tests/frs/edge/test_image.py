from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from frs.edge.image import letterbox, letterbox_batch, load_image, to_nchw
from frs.errors import DataError

# Four pixels in a row of two by two, told apart by every channel.
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)
PIXELS = np.array([[RED, GREEN], [BLUE, GREY]], dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "i.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_rgb_as_it_is(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(PIXELS))), PIXELS)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.array([[0, 7], [130, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_transparency_is_over_black(tmp_path: Path) -> None:
    rgba = np.dstack([PIXELS, np.array([[255, 0], [51, 255]], dtype=np.uint8)])
    expected = PIXELS.copy()
    expected[0, 1] = 0
    expected[1, 0] = (0, 0, 51)
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(rgba))), expected)


def test_grey_with_transparency(tmp_path: Path) -> None:
    la = Image.merge("LA", [Image.new("L", (1, 1), 200), Image.new("L", (1, 1), 51)])
    np.testing.assert_array_equal(load_image(saved(tmp_path, la)), [[[40, 40, 40]]])


def test_palettes_are_resolved(tmp_path: Path) -> None:
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([10, 20, 30, 200, 100, 50])
    paletted.putdata([1, 0])
    np.testing.assert_array_equal(load_image(saved(tmp_path, paletted)), [[[200, 100, 50], [10, 20, 30]]])
    clear = saved(tmp_path, paletted, "t.png", transparency=1)
    np.testing.assert_array_equal(load_image(clear), [[[0, 0, 0], [10, 20, 30]]])


def test_sixteen_bits_lose_their_low_byte(tmp_path: Path) -> None:
    deep = np.array([[0, 255], [256, 65535]], dtype=np.uint16)
    expected = np.repeat(np.array([[0, 0], [1, 255]], dtype=np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(deep))), expected)


def test_black_and_white(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.new("1", (1, 1), 1))), [[[255, 255, 255]]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "i.tif"))
    np.testing.assert_array_equal(found[0, 0], RED)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PIXELS)),
    ],
)
def test_the_cameras_orientation_is_applied(tmp_path: Path, orientation: int, expected: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(PIXELS), exif=exif)), expected)


def test_what_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        load_image(tmp_path / "gone.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        path = saved(tmp_path, Image.fromarray(noise), name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=f"{name}: cannot be read as an image"):
            load_image(path)
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(DataError, match=r"text\.png: .*no AVIF, BMP"):
        load_image(tmp_path / "text.png")
    with pytest.raises(DataError, match="cannot be read"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "JPEG2000", "PPM", "AVIF"])
def test_whatever_is_damaged_is_an_image_or_a_data_error(tmp_path: Path, format: str) -> None:
    if not features.check("avif") and format == "AVIF":
        pytest.skip("this Pillow was built without AVIF")
    generator = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(PIXELS.repeat(8, axis=0).repeat(8, axis=1)), "i", format=format, exif=exif)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[generator.integers(0, min(len(whole), 300), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert load_image(path).shape[2] == 3
        except DataError as error:
            refused += str(path) in str(error)
    assert refused > 0


@pytest.mark.parametrize("size", [(16_001, 10_000), (20_000, 10_000)], ids=["ours", "Pillow's"])
def test_more_pixels_than_the_limits_are_not_even_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path, Image.new("1", size), "huge.png")
    path.write_bytes(path.read_bytes()[:200])  # what is cut off nobody misses
    with pytest.raises(DataError, match=r"huge\.png: .* more than the 160 megapixels that are read; tile the image"):
        load_image(path)


@pytest.mark.filterwarnings("error")
def test_a_hundred_megapixels_are_read_without_a_word(tmp_path: Path) -> None:
    image = Image.new("1", (10_000, 10_000))
    image.putpixel((9_999, 9_998), 1)
    pixels = load_image(saved(tmp_path, image, "large.png"))
    assert pixels.shape == (10_000, 10_000, 3)
    assert pixels[9_998, 9_999].tolist() == [255, 255, 255]
    assert not pixels[:9_998].any()


def test_an_image_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (40, 30)))
    assert load_image(path, (30, 40)).shape == (30, 40, 3)
    with pytest.raises(
        DataError, match=r"i\.png: it is 40 x 30 pixels; the annotations say 30 x 40, so that its boxes"
    ):
        load_image(path, (40, 30))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="it is 40 x 30 pixels; the annotations say 31 x 40"):
        load_image(path, (40, 31))


def test_a_size_is_that_of_the_turned_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (40, 30)), "i.jpg", exif=exif)
    assert load_image(path, (40, 30)).shape == (40, 30, 3)
    with pytest.raises(
        DataError, match="it is 30 x 40 pixels, its EXIF orientation applied; the annotations say 40 x 30"
    ):
        load_image(path, (30, 40))


@pytest.mark.parametrize(
    ("name", "options"), [("i.gif", {}), ("i.tif", {}), ("i.png", {}), ("i.webp", {"lossless": True})]
)
def test_of_several_frames_the_first_is_taken(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert (load_image(path) == RED).all()


def test_a_format_that_makes_pillow_run_a_program_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands an EPS to Ghostscript; one that would be found stands ready here."""
    path = saved(tmp_path, Image.new("RGB", (8, 8), RED), "i.eps").rename(tmp_path / "i.png")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(
        DataError, match=r"cannot be read as an image \(no AVIF, BMP, .*WEBP\); replace it or leave it out"
    ):
        load_image(path)
    assert not (tmp_path / "was_run").exists()
    with Image.open(path) as image, pytest.raises(OSError, match=r"gs|file"):
        image.load()
    assert (tmp_path / "was_run").exists(), "Pillow itself would have run it"


def test_letterbox_by_hand() -> None:
    image = np.full((50, 100, 3), 200, dtype=np.uint8)
    boxed, mapping = letterbox(image, 64, 64)
    assert (mapping.scale, mapping.content_height, mapping.content_width) == (0.64, 32, 64)
    assert (boxed[:32] == 200).all()
    assert (boxed[32:] == 114).all()
    np.testing.assert_allclose(mapping.to_original(np.array([[32.0, 16, 64, 60]])), [[50, 25, 100, 50]])


def test_an_image_that_fits_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(image, 64, 96)[0], image)


def test_scaling_down_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    boxed, _ = letterbox(stripes, 16, 16)
    assert 120 <= boxed[:, 2:-2].min() <= boxed[:, 2:-2].max() <= 135, "without it the stripes would alias to 0 or 255"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 96, 256]), st.sampled_from([64, 160]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_boxes_make_the_round_trip(height: int, width: int, to_height: int, to_width: int, seed: int) -> None:
    boxed, mapping = letterbox(np.zeros((height, width, 3), dtype=np.uint8), to_height, to_width)
    assert boxed.shape == (to_height, to_width, 3)
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.random((5, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(5, 4).astype(np.float32)
    inside = mapping.to_input(boxes)
    assert inside[:, 2].max() <= to_width + 1e-3
    assert inside[:, 3].max() <= to_height + 1e-3
    assert abs(mapping.content_width - width * mapping.scale) <= max(0.5, 1 - width * mapping.scale) + 1e-6
    np.testing.assert_allclose(mapping.to_original(inside), boxes, atol=1e-3 * max(1, width, height))


def test_a_box_beyond_the_image_is_brought_inside() -> None:
    _, mapping = letterbox(np.zeros((50, 100, 3), dtype=np.uint8), 64, 64)
    np.testing.assert_allclose(mapping.to_original(np.array([[-5.0, -5, 200, 200]])), [[0, 0, 100, 50]])


def test_to_nchw() -> None:
    batch = to_nchw([PIXELS, PIXELS[::-1].copy()])
    assert batch.shape == (2, 3, 2, 2)
    assert batch.flags["C_CONTIGUOUS"]
    assert batch[1, :, 0, 0].tolist() == list(BLUE)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3),
    to=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_a_batch_has_the_pixels_of_its_images(sizes: list[tuple[int, int]], to: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [*sizes, to]]
    pixels, mappings = letterbox_batch(images, *to)
    boxed = [letterbox(image, *to) for image in images]
    np.testing.assert_array_equal(pixels, to_nchw([each for each, _ in boxed]))
    assert mappings == [mapping for _, mapping in boxed]
    assert pixels.flags["C_CONTIGUOUS"]
