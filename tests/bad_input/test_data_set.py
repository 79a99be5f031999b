"""Data sets that cannot be used, and those that look so and can: what `run` and `check` say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.conftest import Place, call

NOT = "cannot be read as an image"
Change = Callable[[Any], None]


def faulty(place: Place, change: Change, split: str = "train") -> tuple[str, str]:
    """The annotations of a split changed: what `run` says, and the lines of `check` that are about faults and warnings."""
    document = place.annotations(split)
    change(document)
    place.annotate(split, document)
    return place.refuses("run", "mine.yaml", "--until", "data"), checked(place)


def checked(place: Place, code: int = 1) -> str:
    result = call("check", "mine.yaml")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "Warning" not in result.output
    return "".join(
        line.replace(f"{place.folder}/", "") + "\n" for line in result.stdout.splitlines() if not line.startswith("ok ")
    )


def entry(key: str, index: int, **values: Any) -> Change:
    return lambda document: document[key][index].update(values)


BOX = "annotation 3 of image 2 (2.png)"
NOWHERE = "correct it, or remove the annotation"
LISTED = "; `frs-pipeline check` lists them all"


@pytest.mark.parametrize(
    ("change", "counted", "named"),
    [
        (
            entry("annotations", 2, bbox=[64, 5, 10, 10]),
            "1 box lies outside its image",
            f"{BOX}: bbox [64, 5, 10, 10] lies outside its image (64 x 64); correct or remove it",
        ),
        (
            entry("annotations", 2, bbox=[5, 5, float("nan"), 10]),
            "1 box is not four plain numbers",
            f"{BOX}: bbox must be [x, y, width, height] in numbers, got [5, 5, nan, 10]; correct or remove it",
        ),
        (
            entry("annotations", 2, bbox=[5, 5, 1e300, 10]),
            "1 box is not four plain numbers",
            f"{BOX}: bbox must be [x, y, width, height] in numbers, got [5, 5, 1e+300, 10]; correct or remove it",
        ),
        (
            entry("annotations", 2, category_id=8),
            "1 annotation is of no category",
            f"{BOX}: category_id 8 is no category of this file; correct it, or add the category",
        ),
        (
            entry("annotations", 2, image_id=99),
            "1 annotation is of no image",
            f"annotation 3: image_id 99 is no image of this file; {NOWHERE}",
        ),
        (
            entry("annotations", 2, id=1),
            "1 id or name is there twice",
            "annotation 1: its id is there twice; remove one of the two, or give it its own",
        ),
        (
            entry("annotations", 2, iscrowd="yes"),
            "1 entry is malformed",
            f"{BOX}: iscrowd must be 0 or 1, got 'yes'; correct it",
        ),
        (
            entry("images", 1, width="wide"),
            "1 entry is malformed",
            "image 2 (2.png): needs positive integers width and height, got 'wide' and 64; correct or remove it",
        ),
        (
            lambda document: document["categories"].append({"id": 7, "name": "square"}),
            "1 id or name is there twice",
            "categories[1]: id 7 or name 'square' is there twice; give each category its own, once",
        ),
        (
            lambda document: document.update(categories=[]),
            "1 list has nothing that can be used, 10 annotations are of no category",
            "categories: there is not one category that can be used; name what is annotated",
        ),
        (
            lambda document: document.update(images=[], annotations=[]),
            "1 list has nothing that can be used",
            "images: there is not one image that can be used; add some, or mend what is above",
        ),
    ],
    ids=[
        "outside", "NaN", "wild", "category", "image", "annotation twice", "crowd", "width", "category twice",
        "no categories", "no images",
    ],
)  # fmt: skip
def test_annotations_that_cannot_be(place: Place, change: Change, counted: str, named: str) -> None:
    said, found = faulty(place, change)
    lines = said.splitlines()
    assert lines[0] == f"stage data: train/annotations.json: {counted}{LISTED}"
    assert lines[1] == f"  {named}"
    assert f"FAULT    data.train: {counted.partition(', ')[0]}\n           {named}\n" in found


@pytest.mark.parametrize("twice", [{"id": 1}, {"file_name": "1.png"}], ids=["id", "file_name"])
def test_an_image_that_is_there_twice(place: Place, twice: dict[str, Any]) -> None:
    said, found = faulty(place, entry("images", 1, **twice))
    assert said.splitlines()[0].startswith("stage data: train/annotations.json: 1 id or name is there twice")
    what = "id 1" if "id" in twice else "file_name"
    assert f": its {what} is there twice; remove one of the two, or give it its own\n" in found


def test_annotations_that_are_no_json(place: Place) -> None:
    (place.folder / "train/annotations.json").write_text('{"images": [')
    said = place.refuses("run", "mine.yaml", "--until", "data")
    assert said == (
        "train/annotations.json: not valid JSON (Expecting value: line 1 column 13 (char 12)); is it a COCO file?"
    )
    assert f"FAULT    data.train: {said}\n" in checked(place)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("annotations", "data.val.annotations: there is no file gone; correct the path"),
        ("images", "data.val.images: there is no folder gone; correct the path"),
    ],
)
def test_a_path_that_leads_nowhere(place: Place, key: str, sentence: str) -> None:
    for command in ("run", "plan"):
        assert place.refuses(command, "mine.yaml", "--set", f"data.val.{key}=gone", code=2) == sentence


def test_missing_images_are_counted_at_once(place: Place) -> None:
    for name in ("2.png", "4.png", "5.png"):
        (place.folder / "train/images" / name).unlink()
    said = place.refuses("run", "mine.yaml")
    assert said == (
        "train/annotations.json: 3 images are missing (first: train/images/2.png); put them there, or remove their entries "
        "and annotations. `frs-pipeline check` names them all"
    )
    found = checked(place)
    assert found.startswith(
        "FAULT    data.train: 3 images are missing\n           image 2 (2.png): there is no train/images/2.png"
    )
    assert found.count("\n") == 4, "their annotations are no faults"


@pytest.mark.parametrize("name", ["../annotations.json", "/etc/hostname", "../../val/images/1.png"])
def test_a_file_name_that_leaves_the_folder(place: Place, name: str) -> None:
    said, found = faulty(place, entry("images", 0, file_name=name))
    sentence = f"file_name {name!r} leads out of the images' folder train/images; keep the images inside it"
    assert said == f"train/annotations.json: {sentence}"
    assert f"FAULT    data.train: 1 image lies outside its folder\n           image 1 ({name}): {sentence}\n" in found


def test_a_link_that_leaves_the_folder(place: Place) -> None:
    link = place.folder / "train/images/1.png"
    link.rename(place.folder / "elsewhere.png")
    link.symlink_to(place.folder / "elsewhere.png")
    said = place.refuses("run", "mine.yaml")
    assert said.endswith("file_name '1.png' leads out of the images' folder train/images; keep the images inside it")
    assert "1 image lies outside its folder" in checked(place)


def spoil(name: str) -> Callable[[Path], None]:
    def garbage(path: Path) -> None:
        path.write_bytes(b"no image at all")

    def truncated(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:1500])

    def program(path: Path) -> None:
        Image.new("RGB", (64, 64)).save(path, "EPS")

    def too_many(path: Path) -> None:
        Image.new("1", (20_000, 10_000)).save(path, "PNG")

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return {"garbage": garbage, "truncated": truncated, "program": program, "too many": too_many, "folder": folder}[
        name
    ]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("garbage", f"{NOT} (no AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP); replace it or leave it out"),
        ("program", f"{NOT} (no AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP); replace it or leave it out"),
        ("truncated", f"{NOT} (image file is truncated"),
        ("too many", "it has more than the 160 megapixels that are read; tile the image or scale it down"),
    ],
)
def test_an_image_that_cannot_be_read_stops_the_run_before_it_trains(place: Place, how: str, sentence: str) -> None:
    spoil(how)(place.folder / "train/images/3.png")
    lines = place.refuses("run", "mine.yaml").splitlines()
    assert lines[0] == f"stage data: data: 1 image cannot be read{LISTED}"
    assert lines[1].startswith(f"  image 3 (3.png): train/images/3.png: {sentence}")
    assert "FAULT    data.train: 1 image cannot be read\n           image 3 (3.png): train/images/3.png: " in checked(
        place
    )


def test_an_image_of_another_size(place: Place) -> None:
    Image.new("RGB", (64, 48)).save(place.folder / "val/images/2.png")
    lines = place.refuses("run", "mine.yaml").splitlines()
    assert lines == [
        f"stage data: data: 1 image has another size than its annotations say{LISTED}",
        "  image 2 (2.png): val/images/2.png: it is 64 x 48 pixels; the annotations say 64 x 64, so that its boxes would "
        "lie elsewhere; correct the annotations or replace the image",
    ]
    assert "FAULT    data.val: 1 image has another size than its annotations say\n" in checked(place)


def test_a_folder_in_the_place_of_an_image(place: Place) -> None:
    spoil("folder")(place.folder / "train/images/3.png")
    assert "1 image is missing (first: train/images/3.png)" in place.refuses("run", "mine.yaml")


@pytest.mark.parametrize("name", ["4.png", "another name.png"])
def test_an_image_in_both_splits(place: Place, name: str) -> None:
    shutil.copy(place.folder / "train/images/4.png", place.folder / "val/images" / name)
    document = place.annotations("val")
    document["images"][1]["file_name"] = name
    place.annotate("val", document)
    said = place.refuses("run", "mine.yaml")
    assert said == (
        f"stage data: data: 1 image is in both splits (first: 4.png in train is {name} in val); remove each from one of "
        "the two annotation files"
    )
    sentence = f"4.png in train: it is {name} in val; remove it from one of the two"
    assert checked(place) == f"FAULT    data: 1 image is in both splits\n           {sentence}\n"


def test_splits_of_other_categories(place: Place) -> None:
    said, found = faulty(place, entry("categories", 0, name="square"), "val")
    assert said == (
        "stage data: data: the two annotation files do not have the same categories (7 rectangle, 7 square are in one "
        "alone); give both the same list, with the same ids and names"
    )
    assert found.splitlines()[0] == "FAULT    data: 2 categories are in one split alone"


def test_a_split_without_an_object(place: Place) -> None:
    said, found = faulty(place, lambda document: document.update(annotations=[]), "val")
    assert said == (
        "stage data: val/annotations.json: the val split has not one object that is no crowd; there is nothing to find in it"
    )
    assert found.splitlines()[0] == "FAULT    data.val: 1 list has nothing that can be used"


def test_what_is_mended_is_a_warning_and_the_run_goes_on(place: Place) -> None:
    document = place.annotations("train")
    document["annotations"][0]["bbox"] = [-20, 10, 40, 20]
    document["annotations"][1]["bbox"] = [10, 10, 0, 20]
    document["annotations"][2] |= {"iscrowd": 1}
    place.annotate("train", document)
    found = checked(place, code=0)
    assert found == (
        "warning  data.train: 1 box reaches beyond its image and is clipped\n"
        "           annotation 1 of image 1 (1.png): bbox [-20, 10, 40, 20] reaches beyond its image (64 x 64); it is clipped\n"
        "warning  data.train: 1 box has no area and is left out\n"
        "           annotation 2 of image 1 (1.png): bbox [10, 10, 0, 20] has no area; it is left out\n"
        "warning  picture: check/worst.png: image 1 (1.png) of train: 2 of its boxes at fault\n"
    )
    assert "train: 5 images, 9 boxes" in place.accepts("run", "mine.yaml", "--until", "data")


def test_splits_that_share_ids_and_a_folder_are_told_apart(place: Place) -> None:
    """Both have an image 1, in one folder: the picture is of the one whose boxes are at fault."""
    for image in (place.folder / "val/images").iterdir():
        image.rename(place.folder / "train/images" / f"val-{image.name}")
    document = place.annotations("val")
    for image in document["images"]:
        image["file_name"] = f"val-{image['file_name']}"
    document["annotations"][0]["bbox"] = [50, 50, 40, 40]
    place.annotate("val", document)
    result = call("check", "mine.yaml", "--set", "data.val.images=train/images", "--out", "here")
    assert "picture: here/worst.png: image 1 (val-1.png) of val: 1 of its boxes at fault" in result.stdout
    with Image.open("here/worst.png") as picture:
        assert picture.width >= 800


def test_check_runs_nothing_and_draws_nothing_without_need(place: Place) -> None:
    shutil.rmtree(place.folder / "runs")
    assert checked(place, code=0) == ""
    assert not Path("runs").exists()
    assert not Path("check").exists()


RGB = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(RGB)).save(path, "PNG", exif=exif)


def palette(path: Path) -> None:
    Image.fromarray(RGB).quantize(16).save(path, "PNG", transparency=3)


def frames(format: str) -> Callable[[Path], None]:
    first, second = Image.fromarray(RGB), Image.new("RGB", (64, 64))
    return lambda path: first.save(path, format, save_all=True, append_images=[second])


def in_mode(mode: str, format: str = "PNG") -> Callable[[Path], None]:
    return lambda path: Image.fromarray(RGB).convert(mode).save(path, format)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(path, "PNG")


@pytest.mark.parametrize(
    "write",
    [
        in_mode("L"), in_mode("RGBA"), in_mode("LA"), in_mode("1"), in_mode("CMYK", "JPEG"), sixteen_bits, palette, turned,
        frames("GIF"), frames("TIFF"),
    ],
    ids=["grey", "RGBA", "LA", "bits", "CMYK", "16 bits", "palette", "turned", "animated", "pages"],
)  # fmt: skip
def test_unusual_images_are_right(place: Place, write: Callable[[Path], None]) -> None:
    """tests/frs/edge/test_image.py holds their pixels against those expected."""
    write(place.folder / "train/images/3.png")
    assert checked(place, code=0) == ""
    place.accepts("run", "mine.yaml", "--until", "data")


def test_a_hundred_megapixels_are_right_and_quiet(place: Place) -> None:
    """In a process of its own, whose standard error nobody has filtered."""
    Image.new("1", (10_000, 10_000)).save(place.folder / "train/images/3.png")
    document = place.annotations("train")
    document["images"][2] |= {"width": 10_000, "height": 10_000}
    place.annotate("train", document)
    command = [sys.executable, "-m", "pipeline.cli", "run", "mine.yaml", "--until", "data"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_an_unchanged_second_run_opens_no_image(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frs.edge.image.Image.open", None)
    assert "data: reused" in place.accepts("run", "mine.yaml", "--until", "data")
