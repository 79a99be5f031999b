"""`manifest.json` of a bundle: what it says, and what of that is believed. Standard library alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frs.errors import BundleError

FORMAT = 1
"""Raised when a reader of the older format would misunderstand the bundle."""
MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.json"
KINDS = ("annotations", "image", "onnx", "reference")

MOST_MEMBERS = 1_000_000
LONGEST_NAME = 100
"""Characters; what a tar's header holds."""
LARGEST_MANIFEST = 256 * 2**20
"""Bytes; a million images take about 150 MB of it."""

_NAME = re.compile(r"annotations\.json|(?:images|models|reference)/[A-Za-z0-9][A-Za-z0-9_+-]*(?:\.[A-Za-z0-9_+-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """A file of a bundle.

    kind: of `KINDS`. model: of an ONNX file and of a reference. precision, properties: of an ONNX file, the latter its
    metadata as `GraphMetadata.to_properties` gives them.
    """

    path: str
    bytes: int
    sha256: str
    kind: str
    model: str | None = None
    precision: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What a bundle says of itself.

    producer: program and version. run: its name. category_ids[i] is the data set's id of the class classes[i]. models: as
    in report.json. thresholds: how boxes are chosen in the graph. height, width: of the input, pixels. settings: section of
    the run's configuration -> its keys, those that a device goes by. note: for whoever looks into the archive.
    """

    producer: str
    run: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    models: Mapping[str, Mapping[str, Any]]
    thresholds: Mapping[str, float]
    height: int
    width: int
    settings: Mapping[str, Mapping[str, Any]]
    note: str


def to_text(about: About, members: Sequence[Member], path: Path) -> bytes:
    """The file. path: of the bundle, for the BundleError where no bundle may have these members."""
    described = asdict(about)
    size = {"height": described.pop("height"), "width": described.pop("width")}
    files = [{key: value for key, value in asdict(member).items() if value not in (None, {})} for member in members]
    images = sum(member.kind == "image" for member in members)
    content = {"format": FORMAT, **described, "input": size, "images": images, "files": files}
    content = json.loads(json.dumps(content))  # lists for tuples, so that it is what a reader gets
    document = {**content, "sha256": _seal(content)}
    _parse(document, path)
    return json.dumps(document, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1).encode()


def from_text(text: bytes, path: Path) -> tuple[About, tuple[Member, ...]]:
    """Raises BundleError for whatever a bundle of this format cannot say. path: as above."""
    return _parse(_loads(text, path), path)


def _seal(content: Mapping[str, Any]) -> str:
    """sha256 of a manifest without this very key."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _loads(text: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise BundleError(f"{path}: {MANIFEST} is no JSON; copy the bundle again") from None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise BundleError(f"{path}: {MANIFEST} is not that of a bundle; give the file that `frs-pipeline bundle` wrote")
    if document["format"] != FORMAT:
        raise BundleError(
            f"{path}: format {document['format']}, this version reads {FORMAT}; use the frs-pipeline that wrote it "
            f"({str(document.get('producer'))[:80]!r}), or make the bundle again with this one"
        )
    return document


def _parse(document: dict[str, Any], path: Path) -> tuple[About, tuple[Member, ...]]:
    try:
        if document["sha256"] != _seal({key: value for key, value in document.items() if key != "sha256"}):
            raise BundleError(f"{path}: {MANIFEST} is not what it was when the bundle was made; copy it again")
        about = _about(document)
        files = document["files"]
        if not isinstance(files, list) or len(files) > MOST_MEMBERS:
            raise _Malformed("files")
        members = tuple(_member(entry) for entry in files)
    except (KeyError, TypeError, _Malformed) as error:
        raise BundleError(f"{path}: {MANIFEST} has no valid {error}; make the bundle again") from None
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair, a thousand brackets
        raise BundleError(f"{path}: {MANIFEST} holds what no bundle says; make the bundle again") from None
    _check(members, document, path)
    return about, members


class _Malformed(Exception):
    """Names the key of a manifest that is not as it should be."""


def _about(document: Mapping[str, Any]) -> About:
    classes, ids = _listed(document, "classes", str), _listed(document, "category_ids", int)
    if not classes or len(classes) != len(ids):
        raise _Malformed("category_ids")
    size = {key: _typed(_typed(document, "input", dict), key, int) for key in ("height", "width")}
    if min(size.values()) < 1:
        raise _Malformed("input")
    thresholds = _typed(document, "thresholds", dict)
    if not all(type(value) in (int, float) for value in thresholds.values()):
        raise _Malformed("thresholds")
    nested = {key: _typed(document, key, dict) for key in ("models", "settings")}
    for key, value in nested.items():
        if not all(isinstance(inner, dict) for inner in value.values()):
            raise _Malformed(key)
    texts = {key: _typed(document, key, str) for key in ("producer", "run", "note")}
    return About(classes=classes, category_ids=ids, thresholds=thresholds, **size, **nested, **texts)


_EVERY: dict[str, type] = {"path": str, "bytes": int, "sha256": str, "kind": str}
_BESIDES: dict[str, dict[str, type]] = {
    "onnx": {"model": str, "precision": str, "properties": dict},
    "reference": {"model": str},
}
"""What an entry of `files` has besides, by its kind."""


def _member(entry: Any) -> Member:
    if not isinstance(entry, dict):
        raise _Malformed("files")
    kind = _typed(entry, "kind", str)
    needed = {**_EVERY, **_BESIDES.get(kind, {})}
    values = {key: _typed(entry, key, wanted) for key, wanted in needed.items()}
    properties = values.get("properties", {})
    if (
        kind not in KINDS
        or values["bytes"] < 0
        or not _SHA256.fullmatch(values["sha256"])
        or not all(isinstance(value, str) for value in properties.values())
        or set(entry) != set(needed)
    ):
        raise _Malformed(f"entry of {values['path']!r}")
    return Member(**values)


def _check(members: Sequence[Member], document: Mapping[str, Any], path: Path) -> None:
    """Names that stay in their folder whatever the file system, and the members that a bundle is made of."""
    folders = {"annotations": ANNOTATIONS, "image": "images/", "onnx": "models/", "reference": "reference/"}
    for member in members:
        if (
            len(member.path) > LONGEST_NAME
            or not _NAME.fullmatch(member.path)
            or not member.path.startswith(folders[member.kind])
        ):
            raise BundleError(
                f"{path}: a member is called {member.path[:200]!r}, which no bundle's file is: it could leave its folder; "
                "do not use this bundle"
            )
    names = [member.path for member in members]
    if len({name.lower() for name in names}) < len(names) or names != sorted(names):  # capitals are not told everywhere
        raise BundleError(f"{path}: {MANIFEST} lists a member twice, or not in order; make the bundle again")
    count = {kind: sum(member.kind == kind for member in members) for kind in KINDS}
    models = {member.model for member in members if member.kind == "onnx"}
    compared = {member.model for member in members if member.kind == "reference"}
    if count["annotations"] != 1 or not count["image"] or not models or models != compared:
        raise BundleError(f"{path}: it lacks annotations, images, models or their references; make the bundle again")
    if count["image"] != document["images"] or not models <= set(document["models"]):
        raise BundleError(f"{path}: {MANIFEST} contradicts itself on images or models; make the bundle again")


def _typed(mapping: Mapping[str, Any], key: str, wanted: type) -> Any:
    if type(mapping[key]) is not wanted:
        raise _Malformed(key)
    return mapping[key]


def _listed(mapping: Mapping[str, Any], key: str, wanted: type) -> tuple[Any, ...]:
    values = _typed(mapping, key, list)
    if not all(type(value) is wanted for value in values):
        raise _Malformed(key)
    return tuple(values)
