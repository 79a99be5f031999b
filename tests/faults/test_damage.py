"""Files of the store and of an interrupted attempt that are not what they were."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.lab import copy, entries, executed, outputs, run, strike
from tests.faults.test_kills import check_whole

STORED = {
    "data": "train.json",
    "teacher": "teacher.safetensors",
    "control": "history.json",
    "student": "student.safetensors",
    "export": "student.onnx",
    "engine": "engines.json",
    "validate": "accuracy.json",
    "profile": "profiles.json",
    "report": "report.json",
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [flip, cut])
@pytest.mark.parametrize(
    "stage",
    ["student", *(pytest.param(each, marks=pytest.mark.campaign) for each in STORED if each != "student")],
)
def test_a_damaged_file_of_the_store_is_made_again(
    tmp_path: Path, undisturbed: Undisturbed, stage: str, spoil: object
) -> None:
    folder = copy(undisturbed.folder, tmp_path / "spoilt")
    assert callable(spoil)
    spoil(entries(folder)[stage] / "outputs" / STORED[stage])
    done = run(folder)
    # Trainings, engines and profiles hold times, which are not the same again; the report shows them.
    shown = {"report"} if stage in ("teacher", "control", "student", "engine", "profile") else set()
    assert executed(done.stdout) == {stage} | shown
    assert "damaged" in done.stdout
    check_whole(folder, undisturbed)
    assert executed(run(folder).stdout) == set()


@pytest.mark.parametrize("spoil", [flip, cut])
def test_a_damaged_manifest_says_what_to_do_and_nothing_is_lost(
    tmp_path: Path, undisturbed: Undisturbed, spoil: object
) -> None:
    folder = copy(undisturbed.folder, tmp_path / "spoilt")
    manifest = folder / "runs/tiny/manifest.json"
    manifest.write_text(
        manifest.read_text()[:200] if spoil is cut else manifest.read_text().replace('"schema"', '"schemb"')
    )
    failed = run(folder, code=1)
    assert "manifest.json is damaged" in failed.stderr
    assert "delete it and run again: what is intact in the store is reused" in failed.stderr
    manifest.unlink()
    assert executed(run(folder).stdout) == set()
    check_whole(folder, undisturbed)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pytest.param(b"garbage", marks=pytest.mark.campaign),
        pytest.param(b"PK\x03\x04", marks=pytest.mark.campaign),
    ],
)
def test_a_half_written_attempt(tmp_path: Path, undisturbed: Undisturbed, content: bytes) -> None:
    assert strike(tmp_path, "student", 0.0, signal.SIGKILL, "--until", "student", training=True).in_time
    (partial,) = (tmp_path / "runs/.store/student").glob("*.partial")
    for checkpoint in (partial / "scratch").iterdir():
        checkpoint.write_bytes(content)
    (partial / "outputs").mkdir(exist_ok=True)
    (partial / "outputs/student.safetensors").write_bytes(b"half a file")
    (partial / "outputs/stray.txt").write_text("of nobody")
    (partial / ".entry.json.12345").write_text("{")
    (tmp_path / "runs/tiny/.manifest.json.12345").write_text("{")
    done = run(tmp_path, "--until", "student")
    assert executed(done.stdout) == {"student"}
    assert "is damaged" in done.stdout
    check_whole(tmp_path, undisturbed, until="student")


def test_what_a_person_changes_in_the_run_folder_harms_no_run(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = copy(undisturbed.folder, tmp_path / "edited")
    weights = folder / "runs/tiny/student.safetensors"
    weights.write_bytes(b"mine")
    (folder / "runs/tiny/report.html").unlink()
    run(folder)
    kept = json.loads((folder / "runs/tiny/manifest.json").read_text())["stages"]["student"]["published"]
    assert "student.safetensors" in kept
    assert weights.read_bytes() == (entries(folder)["student"] / "outputs/student.safetensors").read_bytes()
    assert (folder / "runs/tiny/report.html").exists()
    assert outputs(folder) == undisturbed.outputs
