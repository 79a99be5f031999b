"""The lock files say what pyproject asks for, and the images, bills of materials and licences are of these very files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import __version__
from pipeline.environment import read_lock

tomllib = pytest.importorskip("tomllib")  # of Python 3.11, as the images' tests are
from containers import image_test, sbom  # noqa: E402

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "locks"
EXTRAS = {
    "dev": ("train", "ort", "rtx", "dev"),
    "train": ("train", "ort", "rtx"),
    "tensorrt": ("train", "ort", "rtx"),
    "device": ("device", "ort"),
    "jetson6": ("device",),
    "jetson7": ("device",),
}
PLATFORMS = sbom.TARGETS | {"dev": sbom.TARGETS["train"]}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def asked(extras: tuple[str, ...]) -> list[Requirement]:
    """Direct requirements, those of extras within extras too."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(line)
            found += asked(tuple(requirement.extras)) if requirement.name == PROJECT["name"] else [requirement]
    return found


@pytest.mark.parametrize("target", EXTRAS)
def test_a_lock_has_what_pyproject_asks_for(target: str) -> None:
    python, processor, _ = PLATFORMS[target]
    there = {"python_version": python, "platform_machine": processor, "extra": ""}
    lock = LOCKS / f"{target}.txt"
    pinned = read_lock(lock)
    wanted = [each for each in asked(EXTRAS[target]) if not each.marker or each.marker.evaluate(there)]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"locks/{target}.txt has no {name}: make lock"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{name} {pinned[name]}: make lock"
    entries = re.split(r"\n(?=\w)", lock.read_text(encoding="utf-8"))
    direct = {each.partition("==")[0] for each in entries if "frs-pipeline (pyproject.toml)" in each}
    assert direct == {canonicalize_name(each.name) for each in wanted}, "make lock"


def test_no_image_but_those_for_training_has_torch() -> None:
    assert {target for target in EXTRAS if "torch" in read_lock(LOCKS / f"{target}.txt")} == {
        "dev",
        "train",
        "tensorrt",
    }


def test_what_is_developed_with_is_what_the_image_has() -> None:
    train, dev = read_lock(LOCKS / "train.txt"), read_lock(LOCKS / "dev.txt")
    assert {name: dev[name] for name in train} == train


def test_the_wheel_is_built_with_what_pyproject_names() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert set(build) <= set(PROJECT["optional-dependencies"]["build"])
    pinned = read_lock(LOCKS / "build.txt")
    for requirement in map(Requirement, build):
        assert requirement.specifier.contains(pinned[requirement.name])


@pytest.mark.parametrize(
    "path", sorted(path for path in LOCKS.glob("*.txt") if path.name != "constraints.txt"), ids=str
)
def test_every_pin_has_a_hash_and_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for entry in re.split(r"\n(?=[\w])", text.partition("make lock\n")[2]):
        assert "--hash=sha256:" in entry, entry
    assert not re.search(r"://|file:|--index|--find-links", text)


def test_the_images_labels_have_the_version() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG VERSION=(.*)$", dockerfile, re.MULTILINE)) == {__version__}


def test_the_images_were_tested_since_what_they_are_made_of_changed() -> None:
    stamp = json.loads(image_test.STAMP.read_text(encoding="utf-8"))
    assert stamp["inputs"] == image_test.inputs(), "make image-test, and commit containers/tested.json"


@pytest.mark.parametrize("target", sbom.TARGETS)
def test_a_bill_of_materials_is_that_of_the_lock(target: str) -> None:
    listed = {canonicalize_name(name): version for name, (version, _) in sbom.components(target).items()}
    assert listed == read_lock(LOCKS / f"{target}.txt"), "make sbom"


def test_the_page_of_licences_is_that_of_the_bills() -> None:
    found = {target: sbom.components(target) for target in sbom.TARGETS}
    assert sbom.PAGE.read_text(encoding="utf-8") == sbom.page(found), "make sbom"
    assert [fault for each in found.values() for fault in sbom.faults(each)] == []


@pytest.mark.parametrize(
    ("licences", "allowed"),
    [
        (["MIT"], True),
        (["BSD-3-Clause AND (MPL-2.0 OR MIT)", "BSD License"], True),
        (["Apache-2.0 WITH LLVM-exception"], True),
        (["LicenseRef-NVIDIA-Proprietary"], True),
        (["AGPL-3.0-only"], False),
        (["MIT AND AGPL-3.0-only"], False),
        (["GNU Affero General Public License v3"], False),
        (["CC-BY-NC-4.0"], False),
        (["MIT", "Free for non-commercial use"], False),
        (["Other/Proprietary License"], False),
        (["UNKNOWN"], False),
        ([], False),
    ],
)
def test_which_licences_are_allowed(licences: list[str], allowed: bool) -> None:
    assert (sbom.faults({"thing": ("1.0", licences)}) == []) is allowed


def test_all_that_a_package_declares_counts() -> None:
    declared = [
        {"license": {"id": "MIT"}},
        {"expression": "MPL-2.0 AND MIT"},
        {"license": {"name": "License :: Other/Proprietary License"}},
    ]
    assert sbom.licences({"licenses": declared}) == ["MIT", "MPL-2.0 AND MIT", "Other/Proprietary License"]
    assert sbom.licences({}) == []
