"""`frs-pipeline bundle` on a finished run."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from frs.data import CocoDataset, read_coco
from frs.edge.bundle import Bundle, Source, open_bundle, write_bundle
from frs.errors import BundleError
from stages.bundle import annotations_and_images
from tests.frs.edge.test_bundle import ABOUT, sources
from tests.stages.conftest import frs_pipeline


@pytest.fixture(scope="module")
def copied(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second copy of the runs, elsewhere, which a test may damage and put right again."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(workplace / "runs", folder / "runs")
    return folder


@pytest.fixture(scope="module")
def bundled(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle of the run, and what was said of it."""
    path = tmp_path_factory.mktemp("bundled") / "new folder" / "small.tar"
    return path, frs_pipeline("bundle", "small", "-o", path, cwd=workplace).stdout


@pytest.fixture(scope="module")
def opened(bundled: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(bundled[0], tmp_path_factory.mktemp("opened") / "bundle")


def test_the_same_run_gives_the_same_bytes(bundled: tuple[Path, str], copied: Path) -> None:
    frs_pipeline("bundle", copied / "runs" / "small", "-o", "other.tar", cwd=copied)
    assert (copied / "other.tar").read_bytes() == bundled[0].read_bytes()


def test_it_says_what_it_contains(bundled: tuple[Path, str], finished: Path) -> None:
    path, said = bundled
    assert f"{path.stat().st_size / 1e6:.1f} MB" in said
    images = json.loads((finished / "report.json").read_text())["data"]["val"]["images"]
    assert f"{images} of {images} validation images" in said
    assert "give it to nobody who may not have them" in said
    assert "frs-pipeline device run small.tar -o results" in said
    with tarfile.open(path) as archive:
        first = archive.extractfile("manifest.json")
        assert first is not None
        note = json.loads(first.read())["note"]
    assert "contains" in note
    assert str(finished) not in note


def test_it_has_the_files_that_could_ship(opened: Bundle, finished: Path) -> None:
    shipped = {path.name: path.read_bytes() for path in finished.glob("*.onnx")}
    assert {member.path.removeprefix("models/") for member in opened.of_kind("onnx")} == set(shipped)
    for member in opened.of_kind("onnx"):
        assert opened.path(member).read_bytes() == shipped[member.path.removeprefix("models/")]
        assert json.loads(member.properties["precision"]) == member.precision
    models = json.loads((finished / "report.json").read_text())["models"]
    assert opened.about.models == {model: models[model] for model in ("teacher", "student")}


def test_its_images_and_annotations_are_those_that_were_scored(opened: Bundle, finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    outputs = finished.parent / manifest["stages"]["data"]["path"] / "outputs"
    theirs = read_coco(outputs / "val.json", outputs / "images")
    ours = read_coco(opened.annotations, opened.images)
    assert ours.categories == theirs.categories
    assert [image.file_name for image in ours.images] == [f"{n:06}.png" for n in range(1, len(theirs.images) + 1)]
    for mine, other in zip(ours.images, theirs.images, strict=True):
        assert (mine.id, mine.width, mine.height) == (other.id, other.width, other.height)
        for field in ("boxes", "labels", "crowd", "area"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(other, field))
        assert ours.path(mine).read_bytes() == theirs.path(other).read_bytes()
    for model in ("teacher", "student"):
        rows = json.loads((finished / "predictions" / f"{model}-torch-fp32-graph.json").read_text())
        assert json.loads(opened.reference(model).read_text()) == rows


def test_a_sample_is_the_first_images(copied: Path, tmp_path: Path) -> None:
    config = copied / "runs" / "small" / "config.yaml"
    before = config.read_text()
    try:
        config.write_text(yaml.safe_dump({**yaml.safe_load(before), "bundle": {"images": 2}}))
        frs_pipeline("bundle", "small", "-o", tmp_path / "b.tar", cwd=copied)
    finally:
        config.write_text(before)
    bundle = open_bundle(tmp_path / "b.tar", tmp_path / "b")
    data = read_coco(bundle.annotations, bundle.images)
    assert [image.file_name for image in data.images] == ["000001.png", "000002.png"]
    ids = {image.id for image in data.images}
    for model in ("teacher", "student"):
        assert {row["image_id"] for row in json.loads(bundle.reference(model).read_text())} <= ids


@pytest.mark.parametrize("source", ["export/student_fp32", "data/val", "validate/predictions", "teacher/weights"])
def test_a_damaged_store_says_so(copied: Path, tmp_path: Path, source: str) -> None:
    manifest = json.loads((copied / "runs" / "small" / "manifest.json").read_text())
    stage, _, label = source.partition("/")
    record = manifest["stages"][stage]
    path = copied / "runs" / record["path"] / "outputs" / record["outputs"][label]["file"]
    file = path if path.is_file() else sorted(path.iterdir())[0]
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        done = frs_pipeline("bundle", "small", "-o", tmp_path / "b.tar", cwd=copied, check=False)
    finally:
        file.write_bytes(before)
    assert done.returncode == 1
    assert f"{path.relative_to(copied)} is missing or not what the stage {stage} wrote" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_not_of_one_piece(copied: Path, tmp_path: Path) -> None:
    """Its configuration asks for what its files were not made with."""
    config = copied / "runs" / "small" / "config.yaml"
    before = config.read_text()
    for change, says in (
        ({"input": {"height": 256, "width": 256}}, "was made by another version, or for other settings"),
        ({"colour": "red"}, "colour: unknown key"),
    ):
        try:
            config.write_text(yaml.safe_dump({**yaml.safe_load(before), **change}))
            done = frs_pipeline("bundle", "small", "-o", tmp_path / "b.tar", cwd=copied, check=False)
        finally:
            config.write_text(before)
        assert done.returncode == 1
        assert says in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.fixture
def photographs(tmp_path: Path) -> CocoDataset:
    """Two images under names that say too much."""
    folder = tmp_path / "home" / "Jane Doe"
    (folder / "ward 7").mkdir(parents=True)
    names = ["ward 7/patient-4711.JPG", "ward 7/scan.weird"]
    for name in names:
        Image.new("RGB", (30, 20), "red").save(folder / name, format="PNG")
    document: dict[str, Any] = {
        "images": [{"id": i, "file_name": name, "width": 30, "height": 20} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    return read_coco(tmp_path / "a.json", folder)


def packed(data: CocoDataset, path: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, format="PNG")
    hashes = {image.file_name: hashlib.sha256(buffer.getvalue()).hexdigest() for image in data.images}
    rest = [source for source in sources() if source.member.kind in ("onnx", "reference")]
    given: list[Source] = [*annotations_and_images(data, hashes), *rest]
    write_bundle(path, ABOUT, given, lambda done, total: None)
    return path


def test_nothing_tells_what_the_user_calls_the_images(photographs: CocoDataset, tmp_path: Path) -> None:
    data = packed(photographs, tmp_path / "b.tar").read_bytes()
    for word in (b"Jane", b"ward", b"4711", b"scan", b"home"):
        assert word not in data
    bundle = open_bundle(tmp_path / "b.tar", tmp_path / "in")
    assert [member.path for member in bundle.of_kind("image")] == ["images/000001.jpg", "images/000002.image"]


def test_an_image_that_changed_or_is_gone(photographs: CocoDataset, tmp_path: Path) -> None:
    path = photographs.path(photographs.images[1])
    Image.new("RGB", (30, 20), "blue").save(path, format="PNG")
    with pytest.raises(BundleError, match=r"scan\.weird: the image is not what it was when the run was made"):
        packed(photographs, tmp_path / "b.tar")
    path.unlink()
    with pytest.raises(BundleError, match=r"scan\.weird: No such file or directory; the image is not what it was"):
        packed(photographs, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()
