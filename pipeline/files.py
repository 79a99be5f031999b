"""The few file operations that the store rests on: atomic writes, fsync, locks that die with their process."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A lock belongs to every process that shares its descriptor: without this a forked data-loading worker that
# outlives its killed parent would go on holding the parent's locks.
os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path, *, busy: Callable[[int | None], None], shared: bool = False) -> Iterator[None]:
    """Hold an advisory lock on `path`, which is made where it is missing and names the holder's process id.

    Where another process holds it, `busy` is called with that id (None: not known); it raises to give up, or
    returns to wait.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _held.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    busy(_holder(path))
                    told = True
                fcntl.flock(descriptor, kind)
            # The collector may have deleted the file between open and lock; another one stands there now.
            if not _is(path, descriptor):
                continue
            if not shared:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
            return
        finally:
            if descriptor in _held:
                _held.discard(descriptor)
                os.close(descriptor)


def _holder(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`, unless it has that content: after a crash the old or the new one is there, whole.

    Raises OSError with the path in it.
    """
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync(path.parent)


def clear_temporary(folder: Path) -> None:
    """Delete what a killed `write_atomic` left in a folder that nobody else writes to now."""
    for path in folder.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink()


def to_json_text(value: Any) -> str:
    """JSON for people to read; refuses NaN and whatever JSON cannot hold (ValueError, TypeError)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and itself."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(Path(root, name).lstat().st_size for root, _, files in os.walk(path) for name in files)
