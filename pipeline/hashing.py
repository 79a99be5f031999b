"""Content hashes: canonical JSON, files (with a memo, so that an unchanged one is read once) and folders."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.files import write_atomic

_CHUNK = 1 << 20
_HEAD = '{"sha256":"%s","files":'

_Record = list[Any]  # [size, mtime_ns, ctime_ns, inode, sha256]


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises TypeError or ValueError for what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its own hash in it."""
    return {**document, "sha256": sha256_of(document)}


def unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """What was sealed. Raises ValueError where a bit of it is not what it was, KeyError or TypeError for another thing."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    if document["sha256"] != sha256_of(content):
        raise ValueError("its content is not what its sha256 says")
    return content


class Hasher:
    """Hashes by content.

    `memo` is a JSON file that remembers size, mtime, ctime and inode of what was read; a damaged one is ignored. A file
    is remembered only if it last changed `settle` seconds or more before it was read: a later write within one tick of
    the file system's clock would go unseen otherwise.
    """

    def __init__(self, memo: Path, settle: float = 2.0) -> None:
        self._memo = memo
        self._settle_ns = int(settle * 1e9)
        self._known = _load(memo)
        self._fresh: dict[str, _Record] = {}

    def file(self, path: Path) -> str:
        """sha256 of a regular file's bytes. Raises OSError, or StoreError for anything else than a file."""
        key = os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps "..")
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise StoreError(f"{path} is not a regular file, so its content cannot be hashed; put a file in its place.")
        identity = _identity(before)
        record = self._fresh.get(key) or self._known.get(key)
        if record is not None and record[:4] == identity:
            return str(record[4])
        now = time.time_ns()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        sha256 = digest.hexdigest()
        settled = now - max(before.st_mtime_ns, before.st_ctime_ns) >= self._settle_ns
        if settled and _identity(path.stat()) == identity:
            self._fresh[key] = [*identity, sha256]
        return sha256

    def folder(self, path: Path) -> str:
        """sha256 of a folder: the sorted relative paths and hashes of its files; empty folders do not count.

        Raises StoreError for a symbolic link in it: its target may change, or lie outside, unseen.
        """
        return sha256_of([[name, self.file(path / name)] for name in sorted(_names(path))])

    def either(self, path: Path) -> str:
        """sha256 of a file or a folder."""
        return self.folder(path) if path.is_dir() else self.file(path)

    def save(self) -> None:
        """Write what was learnt to the memo, where its folder exists.

        Of two writers at once one may lose records, which costs a second reading; so does a memo that cannot be written.
        """
        if self._fresh and self._memo.parent.is_dir():
            self._known = {**_load(self._memo), **self._fresh}
            self._fresh = {}
            with suppress(OSError):
                self._write()

    def forget_missing(self) -> None:
        """Drop from the memo the files that are no longer there."""
        kept = {name: record for name, record in self._known.items() if Path(name).exists()}
        if len(kept) < len(self._known):
            self._known = kept
            self._write()

    def _write(self) -> None:
        body = canonical(self._known)
        write_atomic(self._memo, _HEAD % hashlib.sha256(body.encode()).hexdigest() + body + "}")


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load(memo: Path) -> dict[str, _Record]:
    try:
        text = memo.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    size = len(_HEAD % ("0" * 64))
    body = text[size:-1]
    # A flipped bit in a remembered hash would make an intact training run again; so the memo carries its own.
    if text[:size] != _HEAD % hashlib.sha256(body.encode()).hexdigest():
        return {}
    known: dict[str, _Record] = json.loads(body)
    return known


def _names(folder: Path) -> list[str]:
    names: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as found:
            for item in found:
                if item.is_symlink():
                    raise StoreError(
                        f"{item.path} is a symbolic link; a folder is hashed by the files in it, so put a copy there."
                    )
                if item.is_dir():
                    pending.append(f"{prefix}{item.name}/")
                else:
                    names.append(f"{prefix}{item.name}")
    return names
