from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.hashing import Hasher, canonical, sha256_of


def test_canonical_json_does_not_depend_on_order_or_sequence_type() -> None:
    assert canonical({"b": (1, 2), "a": "é"}) == '{"a":"é","b":[1,2]}'
    assert sha256_of({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), {"x": float("inf")}])
def test_canonical_json_refuses_what_json_has_no_word_for(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


def test_file_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(content)
    assert Hasher(tmp_path / "memo").file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    real = Path.open

    def spy(self: Path, mode: str = "r", *rest: object, **named: object) -> object:
        if mode == "rb":
            opened.append(self.name)
        return real(self, mode, *rest, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    return opened


def test_an_unchanged_file_is_read_once_across_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("content")
    first = Hasher(tmp_path / "memo", settle=0)
    digest = first.file(tmp_path / "x")
    first.save()
    opened = count_openings(monkeypatch)
    assert Hasher(tmp_path / "memo", settle=0).file(tmp_path / "x") == digest
    assert "x" not in opened


def test_a_changed_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("content")
    hasher = Hasher(tmp_path / "memo", settle=0)
    before, times = hasher.file(path), path.stat()
    path.write_text("CONTENT")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time of the change cannot be set back
    assert hasher.file(path) == hashlib.sha256(b"CONTENT").hexdigest() != before


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    hasher = Hasher(tmp_path / "memo")
    hasher.file(tmp_path / "x")
    hasher.save()
    assert not (tmp_path / "memo").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "binary", "other"])
def test_a_damaged_memo_is_ignored(tmp_path: Path, damage: str) -> None:
    path, memo = tmp_path / "x", tmp_path / "memo"
    path.write_text("content")
    hasher = Hasher(memo, settle=0)
    digest = hasher.file(path)
    hasher.save()
    text = memo.read_text()
    assert json.loads(text)["files"][str(path)][4] == digest
    wrong = "0" if digest[0] != "0" else "1"
    content = {
        "truncated": text[:-20],
        "flipped": text.replace(digest, wrong + digest[1:]),
        "empty": "",
        "binary": "\udcff",
        "other": "[1]",
    }[damage]
    memo.write_bytes(content.encode(errors="surrogateescape"))
    assert Hasher(memo).file(path) == digest


def test_folder_hash_is_that_of_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "b").write_text("1")
    (folder / "sub" / "a").write_text("2")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    hasher = Hasher(tmp_path / "memo")
    expected = hashlib.sha256(f'[["b","{one}"],["sub/a","{two}"]]'.encode()).hexdigest()
    assert hasher.either(folder) == expected
    folder.rename(tmp_path / "elsewhere")
    assert hasher.either(tmp_path / "elsewhere") == expected
    (tmp_path / "elsewhere" / "b").rename(tmp_path / "elsewhere" / "c")
    assert hasher.either(tmp_path / "elsewhere") != expected


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
def test_symbolic_links_in_a_folder_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "hashed").mkdir()
    (tmp_path / "hashed" / "link").symlink_to(tmp_path / target)
    with pytest.raises(StoreError, match="hashed/link is a symbolic link"):
        Hasher(tmp_path / "memo").folder(tmp_path / "hashed")


def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe is not a regular file"):
        Hasher(tmp_path / "memo").file(tmp_path / "pipe")


def test_missing_files_are_forgotten(tmp_path: Path) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).write_text(name)
    hasher = Hasher(tmp_path / "memo", settle=0)
    for name in ("kept", "gone"):
        hasher.file(tmp_path / name)
    hasher.save()
    (tmp_path / "gone").unlink()
    Hasher(tmp_path / "memo").forget_missing()
    assert list(json.loads((tmp_path / "memo").read_text())["files"]) == [str(tmp_path / "kept")]


def test_a_memo_that_cannot_be_written_costs_nothing_but_a_second_reading(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    (tmp_path / "memo").mkdir()
    (tmp_path / "memo" / "in the way").touch()
    hasher = Hasher(tmp_path / "memo", settle=0)
    hasher.file(tmp_path / "x")
    hasher.save()
    assert Hasher(tmp_path / "memo").file(tmp_path / "x") == hashlib.sha256(b"content").hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memo", "x"]
