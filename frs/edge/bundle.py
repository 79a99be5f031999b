"""The archive that takes a run to a device: written reproducibly, and opened as something that a stranger may have sent.

A plain tar file (POSIX ustar). Its first member, `manifest.json`, lists every other with size and sha256 and carries its
own hash, so that nothing is believed that was not promised:

    manifest.json               what the bundle is; the members behind it are sorted by name
    annotations.json            COCO; file names are relative to images/
    images/000001.jpg           the user's images, under numbers
    models/student.int8.onnx    the files that could be shipped
    reference/student.json      torch's detections on the images, with the graph's decode: COCO result rows
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from frs.edge import files
from frs.edge.bundle_manifest import (
    ANNOTATIONS,
    FORMAT,
    LARGEST_MANIFEST,
    MANIFEST,
    About,
    Member,
    from_text,
    to_text,
)
from frs.errors import BundleError

__all__ = [
    "ANNOTATIONS",
    "FORMAT",
    "About",
    "Bundle",
    "Member",
    "Source",
    "open_bundle",
    "read_bundle",
    "sha256_of",
    "write_bundle",
]

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files lie in `folder` under their names, each with the size and hash that it promised."""

    folder: Path
    about: About
    members: tuple[Member, ...]

    def of_kind(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    def path(self, member: Member) -> Path:
        return self.folder / member.path

    @property
    def annotations(self) -> Path:
        return self.folder / ANNOTATIONS

    @property
    def images(self) -> Path:
        """The folder that the annotations' file names are relative to."""
        return self.folder / "images"

    def reference(self, model: str) -> Path:
        """Torch's detections. Raises BundleError where the bundle has none of this model."""
        for member in self.of_kind("reference"):
            if member.model == model:
                return self.path(member)
        raise BundleError(f"{self.folder}: the bundle has no reference detections of the {model}; make it again")


@dataclass(frozen=True)
class Source:
    """A member and where its content comes from: a file, which is streamed, or bytes.

    changed: what to say, after the file's path, where its content is not what the member promises.
    """

    member: Member
    content: Path | bytes
    changed: str = "it is not what it was when the bundle was begun; make the bundle again"


def write_bundle(path: Path, about: About, sources: Sequence[Source], progress: Callable[[int, int], None]) -> None:
    """Write the archive, whole or not at all; the same content gives the same bytes, whoever writes it and when.

    progress: called with the bytes written and their sum. Raises BundleError for a file that does not hold what its member
    promises, for members that no bundle may have, and where `path` is something else than a file.
    """
    if path.exists() and not path.is_file():  # a device, a pipe: renaming would put a file in its place
        raise BundleError(f"{path} is there already and is no file; name another with -o")
    ordered = sorted(sources, key=lambda source: source.member.path)
    text = to_text(about, [source.member for source in ordered], path)
    total = sum(source.member.bytes for source in ordered)
    done = 0
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as archive:
            archive.write(_header(MANIFEST, len(text)) + text + _filling(len(text)))
            for source in ordered:
                member = source.member
                archive.write(_header(member.path, member.bytes))
                for chunk in _content(source):
                    archive.write(chunk)
                    done += len(chunk)
                    progress(done, total)
                archive.write(_filling(member.bytes))
            archive.write(bytes(_archive_bytes(len(text), [s.member for s in ordered]) - archive.tell()))
            archive.flush()
            os.fsync(archive.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_bundle(path: Path, folder: Path) -> Bundle:
    """Check the archive and extract it to `folder`, which must not exist: whole and verified, or not at all.

    Only what the manifest lists is written, into a folder beside `folder` that is renamed in the end. Raises BundleError for
    anything that is not a whole bundle of this format, naming the file and the member.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)  # of a process that was killed
    with _opened(path) as archive:
        text = _read_manifest(archive, path)
        about, members = from_text(text, path)
        promised, there = _archive_bytes(len(text), members), os.fstat(archive.fileno()).st_size
        if promised != there:
            what = "it is cut short" if there < promised else "something was added to it"
            raise BundleError(f"{path}: {there:,} bytes, its manifest promises {promised:,}: {what}; copy it again")
        try:
            for kind in ("images", "models", "reference"):
                (partial / kind).mkdir(parents=True, exist_ok=True)
            (partial / MANIFEST).write_bytes(text)
            for member in members:
                _extract(archive, member, partial / member.path, path)
            if archive.read().strip(b"\0"):
                raise BundleError(f"{path}: there is something behind its last member; copy it again, or make it again")
            _sync(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Bundle(folder, about, members)


def read_bundle(folder: Path) -> Bundle:
    """A bundle that was extracted before; every hash is checked again.

    Raises BundleError where something is missing or not what it was.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    about, members = from_text(text, path)
    for member in members:
        file = folder / member.path
        if not file.is_file() or files.sha256_of(file) != member.sha256:
            raise BundleError(f"{file}: missing, or not what it was; delete {folder}, and it is extracted again")
    return Bundle(folder, about, members)


def sha256_of(path: Path) -> str:
    """Of a bundle. Raises BundleError where there is no such file."""
    with _opened(path):
        return files.sha256_of(path)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _filling(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _archive_bytes(manifest: int, members: Sequence[Member]) -> int:
    """Of an archive: each member with its header, filled up to blocks; two empty blocks; filled up to a record."""
    blocks = sum(1 + -(-size // _BLOCK) for size in (manifest, *(member.bytes for member in members))) + 2
    return -(-blocks * _BLOCK // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _content(source: Source) -> Iterator[bytes]:
    """In chunks; the first that goes beyond the promised size, or a hash that differs in the end, is an error."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(source.content):
        size += len(chunk)
        digest.update(chunk)
        if size > source.member.bytes:
            break
        yield chunk
    if (size, digest.hexdigest()) != (source.member.bytes, source.member.sha256):
        where = source.content if isinstance(source.content, Path) else source.member.path
        raise BundleError(f"{where}: {source.changed}")


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: not a file; give the .tar file that `frs-pipeline bundle` wrote")
        return path.open("rb")
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); give the file that `frs-pipeline bundle` wrote"
        ) from None


def _next(archive: IO[bytes]) -> tarfile.TarInfo | None:
    """The member at this place; None where there is none. Nothing but plain files: no link, no device, no extended name."""
    try:
        info = tarfile.TarInfo.frombuf(archive.read(_BLOCK), "ascii", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.type == tarfile.REGTYPE and info.size >= 0 else None


def _read_manifest(archive: IO[bytes], path: Path) -> bytes:
    if not os.fstat(archive.fileno()).st_size:
        raise BundleError(f"{path}: the file is empty; copy it again")
    first = _next(archive)
    if first is None or first.name != MANIFEST:
        raise BundleError(
            f"{path}: not a bundle (it does not begin with {MANIFEST}); give the file that `frs-pipeline bundle` wrote, "
            "not compressed and not packed again"
        )
    if first.size > LARGEST_MANIFEST:
        raise BundleError(f"{path}: {MANIFEST} has {first.size:,} bytes, more than any bundle's; make it again")
    text = archive.read(first.size)
    if len(text) < first.size or archive.read(-first.size % _BLOCK).strip(b"\0"):
        raise BundleError(f"{path}: {MANIFEST} is cut short or damaged; copy the bundle again")
    return text


def _extract(archive: IO[bytes], member: Member, target: Path, path: Path) -> None:
    fault = BundleError(f"{path}: {member.path} is not as the manifest lists it; copy the bundle again")
    info = _next(archive)
    if info is None or (info.name, info.size) != (member.path, member.bytes):
        raise fault
    digest, left = hashlib.sha256(), member.bytes
    with target.open("xb") as file:
        while chunk := archive.read(min(left, _CHUNK)):
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if left or digest.hexdigest() != member.sha256 or archive.read(-member.bytes % _BLOCK).strip(b"\0"):
        raise fault


def _sync(folder: Path) -> None:
    for place in (folder / "images", folder / "models", folder / "reference", folder):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
