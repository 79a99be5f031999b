from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frs.edge.bundle import About, Bundle, Member, Source, open_bundle, read_bundle, write_bundle
from frs.errors import BundleError

ABOUT = About(
    producer="frs-pipeline 0.1.0",
    run="cells",
    classes=("red", "weiß"),
    category_ids=(1, 7),
    models={"teacher": {"params": 2}, "student": {"params": 1}},
    thresholds={"score_threshold": 0.05, "detections": 100},
    height=64,
    width=96,
    settings={"gates": {"ap_drop": None}},
    note="It contains images.",
)
CONTENTS = {
    "annotations.json": b'{"images": []}',
    "images/000001.jpg": b"first" * 200,
    "images/000002.png": b"second",
    "models/student.int8.onnx": bytes(range(256)) * 3,
    "models/teacher.onnx": b"graph",
    "reference/student.json": b"[]",
    "reference/teacher.json": b"[1]",
}


def member(path: str, content: bytes) -> Member:
    kind = {"images": "image", "models": "onnx", "reference": "reference"}.get(path.partition("/")[0], "annotations")
    name = path.rpartition("/")[2].partition(".")[0]
    model = name if kind in ("onnx", "reference") else None
    onnx: dict[str, Any] = {"precision": "fp32", "properties": {"producer": '"frs"'}} if kind == "onnx" else {}
    return Member(path, len(content), hashlib.sha256(content).hexdigest(), kind, model, **onnx)


def sources(contents: dict[str, bytes] = CONTENTS) -> list[Source]:
    return [Source(member(path, content), content) for path, content in contents.items()]


def written(path: Path, content: list[Source] | None = None) -> Path:
    write_bundle(path, ABOUT, sources() if content is None else content, lambda done, total: None)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("bundle") / "b.tar").read_bytes()


def opened(data: bytes, folder: Path) -> Bundle:
    """In a folder of its own; whatever happens, nothing is left beside what was asked for."""
    folder.mkdir()
    archive = folder / "b.tar"
    archive.write_bytes(data)
    try:
        bundle = open_bundle(archive, folder / "in")
    finally:
        assert set(names(folder)) <= {"b.tar", "in"}
    return bundle


def refused(data: bytes, folder: Path, says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        opened(data, folder)
    assert str(folder / "b.tar") in str(caught.value)
    assert names(folder) == ["b.tar"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(whole: bytes, tmp_path: Path) -> None:
    bundle = opened(whole, tmp_path / "here")
    assert bundle.about == ABOUT
    assert {m.path: bundle.path(m).read_bytes() for m in bundle.members} == CONTENTS
    assert bundle.of_kind("onnx")[0].properties == {"producer": '"frs"'}
    assert bundle.reference("teacher").read_bytes() == b"[1]"
    assert bundle.annotations.parent == bundle.images.parent == bundle.folder
    assert read_bundle(bundle.folder) == bundle


def test_the_same_content_gives_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    backwards = written(tmp_path / "other name.tar", sources()[::-1])
    os.utime(backwards)
    assert backwards.read_bytes() == whole
    on_disk = []
    for source in sources():
        path = tmp_path / source.member.path.replace("/", "-")
        path.write_bytes(CONTENTS[source.member.path])
        path.chmod(0o600)
        on_disk.append(Source(source.member, path))
    assert written(tmp_path / "b.tar", on_disk).read_bytes() == whole


def test_any_tar_lists_it(whole: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos] == ["manifest.json", *sorted(CONTENTS)]
        assert {(i.mode, i.uid, i.gid, i.mtime, i.uname, i.gname) for i in infos} == {(0o644, 0, 0, 0, "", "")}
        for path, content in CONTENTS.items():
            extracted = archive.extractfile(path)
            assert extracted is not None
            assert extracted.read() == content


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_is_found(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Where it is not, because a tar's header has bytes that mean nothing, all is there as it was."""
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    try:
        bundle = opened(bytes(flipped), folder)
    except BundleError:
        return
    assert bundle.about == ABOUT
    assert {m.path: bundle.path(m).read_bytes() for m in bundle.members} == CONTENTS
    assert place % 512 in range(148, 156)  # the checksum's own field, whose digits may end in a blank or a zero


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_part_of_it_is_none(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(whole) - 1))
    refused(
        whole[:end], tmp_path / f"{len(list(tmp_path.iterdir()))}", "copy it again|copy the bundle again|not a bundle"
    )


def manifest(whole: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        extracted = archive.extractfile("manifest.json")
        assert extracted is not None
        document: dict[str, Any] = json.loads(extracted.read())
        return document


def sealed(document: dict[str, Any]) -> bytes:
    """The manifest as a forger would write it: its own hash is right."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def tar(*members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            if info.type == tarfile.REGTYPE:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def forged(whole: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A bundle whose manifest was changed and is whole in itself, with the members that it now lists."""
    document = manifest(whole)
    contents = [CONTENTS[entry["path"]] for entry in document["files"]]
    change(document)
    entries = zip([entry["path"] for entry in document["files"]], contents, strict=False)
    return tar(("manifest.json", sealed(document)), *entries)


def test_a_forger_who_changes_nothing_makes_the_same_bundle(whole: bytes, tmp_path: Path) -> None:
    assert opened(forged(whole, lambda document: None), tmp_path / "here").about == ABOUT


NAMES = [
    "/etc/passwd", "../../x", "images/../../x", "images/..", "images/.", "images//x", "images/./x", "images/.hidden", "images",
    "images/", "images/a/b", "images\\x", "images/..\\..\\x", "C:\\x", "images/C:x", "images/x.", "images/a b", "images/x\n",
    "images/\x00", "images/x\x00y", "images/\u202ex", "images/ö", "~/x", "images/~", "", "manifest.json", "models/x.jpg",
    "IMAGES/x", "images/" + "x" * 300, "images/con/x", "images/-rf", "images/a..b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_bundle_has(whole: bytes, tmp_path: Path, name: str) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["files"][1]["path"] = name

    document = manifest(whole)
    rename(document)
    data = tar(("manifest.json", sealed(document)), *((path, CONTENTS[path]) for path in sorted(CONTENTS)))
    refused(data, tmp_path / "here", "could leave its folder")


def set_key(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer": (set_key("format", value=2), "format 2, this version reads 1"),
    "no format": (set_key("format", value="1"), "not that of a bundle"),
    "listed twice": (lambda d: d["files"].insert(1, d["files"][1]), "twice"),
    "twice but for capitals": (set_key("files", 2, "path", value="images/000001.JPG"), "twice"),
    "out of order": (lambda d: d["files"].reverse(), "not in order"),
    "one image less": (lambda d: d["files"].pop(1), "contradicts itself"),
    "no image": (lambda d: d["files"].__delitem__(slice(1, 3)), "lacks"),
    "no reference": (lambda d: d["files"].pop(), "lacks"),
    "larger": (set_key("files", 1, "bytes", value=10**15), "cut short"),
    "negative": (set_key("files", 1, "bytes", value=-512), "'images/000001.jpg'"),
    "true": (set_key("files", 1, "bytes", value=True), "bytes"),
    "another hash": (set_key("files", 1, "sha256", value="0" * 64), "images/000001.jpg is not as"),
    "no hash": (set_key("files", 1, "sha256", value=""), "'images/000001.jpg'"),
    "another kind": (set_key("files", 1, "kind", value="link"), "'images/000001.jpg'"),
    "an image that is a model": (set_key("files", 3, "path", value="images/000003.onnx"), "could leave"),
    "an unknown key": (set_key("files", 1, "mode", value=0o4755), "'images/000001.jpg'"),
    "a model of no size": (set_key("models", value={"student": {}}), "contradicts itself"),
    "no files": (set_key("files", value={}), "valid files"),
    "no classes": (set_key("classes", value=[]), "category_ids"),
    "a class that is none": (set_key("classes", value=["red", 3]), "classes"),
    "half a surrogate pair": (lambda d: None, "no bundle says"),
    "no size": (set_key("input", value={"height": 0, "width": 9}), "input"),
    "NaN": (set_key("thresholds", value={"score_threshold": float("nan")}), "no bundle says"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_forged_manifest(whole: bytes, tmp_path: Path, what: str) -> None:
    change, says = CHANGES[what]
    data = forged(whole, change)
    if what == "half a surrogate pair":
        data = tar(("manifest.json", sealed(manifest(whole)).replace(b'"cells"', b'"\\ud800lls"')))
    refused(data, tmp_path / "here", says)


def info_of(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


SPECIAL = {
    "a symbolic link": info_of("images/000001.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": info_of("images/000001.jpg", tarfile.LNKTYPE, "../../x"),
    "a device": info_of("images/000001.jpg", tarfile.CHRTYPE),
    "a pipe": info_of("images/000001.jpg", tarfile.FIFOTYPE),
    "a folder": info_of("images/000001.jpg", tarfile.DIRTYPE),
    "a sparse file": info_of("images/000001.jpg", tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("what", SPECIAL)
def test_a_member_that_is_no_plain_file(whole: bytes, tmp_path: Path, what: str) -> None:
    """In the place of an image that takes as many blocks: the size of the archive betrays nothing."""
    first = member("images/000001.jpg", b"")
    document = manifest(whole)
    document["files"][1] |= {"bytes": 0, "sha256": first.sha256}
    contents = {**CONTENTS, "images/000001.jpg": b""}
    plain = [(path, contents[path]) for path in sorted(contents)]
    assert opened(tar(("manifest.json", sealed(document)), *plain), tmp_path / "plain").about == ABOUT
    data = tar(("manifest.json", sealed(document)), plain[0], (SPECIAL[what], b""), *plain[2:], form=tarfile.GNU_FORMAT)
    refused(data, tmp_path / "here", r"images/000001\.jpg is not as")


def test_members_that_the_manifest_does_not_list(whole: bytes, tmp_path: Path) -> None:
    listed: list[tuple[tarfile.TarInfo | str, bytes]]
    listed = [("manifest.json", sealed(manifest(whole))), *((path, CONTENTS[path]) for path in sorted(CONTENTS))]
    assert opened(tar(*listed), tmp_path / "listed").about == ABOUT
    swapped = [*listed[:2], listed[3], listed[2], *listed[4:]]
    long: list[tuple[tarfile.TarInfo | str, bytes]] = [(info_of("x" * 300, tarfile.REGTYPE), b"")]
    for number, (members, form) in enumerate(
        [
            ([*listed, ("more", b"")], tarfile.USTAR_FORMAT),
            (listed[:-1], tarfile.USTAR_FORMAT),
            (swapped, tarfile.USTAR_FORMAT),
            (listed[1:], tarfile.USTAR_FORMAT),
            ([*long, *listed], tarfile.PAX_FORMAT),
            ([*long, *listed], tarfile.GNU_FORMAT),
        ]
    ):
        refused(tar(*members, form=form), tmp_path / f"{number}", "cut short|added|behind|not as|not a bundle")


def test_what_is_no_bundle(whole: bytes, tmp_path: Path) -> None:
    import gzip

    deep = b"[" * 100_000
    for number, (data, says) in enumerate(
        [
            (b"", "empty"),
            (b"PK\x03\x04" + bytes(2000), "not a bundle"),
            (gzip.compress(whole), "not a bundle"),
            (tar(("photo.jpg", b"x")), "not a bundle"),
            (tar(("manifest.json", b"{")), "no JSON"),
            (tar(("manifest.json", deep)), "no JSON"),
            (tar(("manifest.json", b"[]")), "not that of a bundle"),
            (tar(("manifest.json", b"\xff\xfe")), "no JSON"),
            (tar(("manifest.json", b'{"format": 1}')), "no valid 'sha256'"),
            (tar(("manifest.json", json.dumps({**manifest(whole), "run": "other"}).encode())), "not what it was"),
            (whole + bytes(10240), "something was added"),
        ]
    ):
        refused(data, tmp_path / f"{number}", says)
    with pytest.raises(BundleError, match=r"nowhere\.tar: cannot be read"):
        open_bundle(tmp_path / "nowhere.tar", tmp_path / "in")
    with pytest.raises(BundleError, match="not a file"):
        open_bundle(tmp_path, tmp_path / "in")


def test_a_file_that_changed_since_it_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for content in (b"second", b"secon", b"secoNd", b"second and more"):
        path.write_bytes(content)
        given = [s for s in sources() if s.member.path != "images/000002.png"]
        given.append(Source(member("images/000002.png", b"second"), path, "it changed"))
        if content == b"second":
            written(tmp_path / "good.tar", given)
            continue
        with pytest.raises(BundleError, match=r"photo\.jpg: it changed"):
            written(tmp_path / "b.tar", given)
        assert names(tmp_path) == ["good.tar", "photo.jpg"]


def test_an_extracted_bundle_that_was_touched(whole: bytes, tmp_path: Path) -> None:
    bundle = opened(whole, tmp_path / "here")
    (bundle.folder / "models" / "teacher.onnx").write_bytes(b"grapH")
    with pytest.raises(BundleError, match=r"teacher\.onnx: missing, or not what it was"):
        read_bundle(bundle.folder)
    (bundle.folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(bundle.folder)


def test_what_a_killed_process_left_is_taken_away(whole: bytes, tmp_path: Path) -> None:
    half = tmp_path / "here" / ".in.partial"
    half.mkdir(parents=True)
    (half / "x").write_text("half")
    archive = tmp_path / "here" / "b.tar"
    archive.write_bytes(whole)
    open_bundle(archive, tmp_path / "here" / "in")
    assert names(tmp_path / "here") == ["b.tar", "in"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BundleError, match=r"pipe is there already and is no file; name another with -o"):
        written(pipe)
    assert pipe.is_fifo()
