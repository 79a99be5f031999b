"""Configurations that cannot be used, and the sentence that a user reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.conftest import Place

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGE_BOMB = "a: &a {k: v}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
READABLE = "give the path of a YAML file"


@pytest.mark.parametrize("command", ["run", "plan", "check"])
def test_a_file_that_is_not_there(place: Place, command: str) -> None:
    said = place.refuses(command, "gone.yaml", code=2)
    assert said == f"gone.yaml: cannot be read (No such file or directory); {READABLE}"


def test_a_folder(place: Place) -> None:
    assert place.refuses("run", "train", code=2) == f"train: cannot be read (Is a directory); {READABLE}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "mine.yaml: the file is empty; expected sections (name, data, teacher, ...)"),
        (b"# only a comment\n", "mine.yaml: the file is empty; expected sections (name, data, teacher, ...)"),
        (b"- a\n- b\n", "mine.yaml: expected sections (name, data, teacher, ...), got ['a', 'b']"),
        (b"just words", "mine.yaml: expected sections (name, data, teacher, ...), got 'just words'"),
        (b"name: \xff\xfe", f"mine.yaml: cannot be read (it is not UTF-8 text); {READABLE}"),
        ("name: mine".encode("utf-16"), f"mine.yaml: cannot be read (it is not UTF-8 text); {READABLE}"),
        (b"x" * 200_000, f"mine.yaml: more than 100,000 bytes, so no configuration; {READABLE}"),
        (b"name: [mine\n", "mine.yaml: not valid YAML: line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (b"a: b: c\n", "mine.yaml: not valid YAML: line 1, column 5: mapping values are not allowed here"),
        (b"a: *b\n", "mine.yaml: not valid YAML: line 1, column 4: found undefined alias 'b'"),
        (b"name: a\0b", "mine.yaml: not valid YAML: character 8 is U+0000, which no text holds"),
        (b"a: 1\n---\nb: 1\n", "mine.yaml: not valid YAML: line 2, column 1: but found another document"),
        (b"[" * 50_000, "mine.yaml: nested too deeply; a configuration has a handful of levels"),
        (b"a: &a [*a]\n", "mine.yaml: line 1: what is named here contains itself; write the value out"),
        (b"a: !!int ''\n", "mine.yaml: a value cannot be read (IndexError: string index out of range); write it plainly"),
        (b'name: "\\ud800"\n', "mine.yaml: line 1: half of a surrogate pair is no character; correct the escape"),
        (
            b"name: mine\nversion: 1\nname: yours\n",
            "mine.yaml: line 3: the key name is there already in line 1; remove one of them",
        ),
        (
            b"version: 1\ndata:\n  source: trees\n  tile: 96\n  tile: 64\n",
            "mine.yaml: line 5: the key tile is there already in line 4; remove one of them",
        ),
    ],
    ids=[
        "empty", "comment", "list", "words", "latin", "utf-16", "huge", "open bracket", "colons", "alias", "control",
        "documents", "deep", "recursive", "wrong scalar", "surrogate", "key twice", "inner key twice",
    ],
)  # fmt: skip
def test_a_text_that_is_no_configuration(place: Place, content: bytes, sentence: str) -> None:
    (place.folder / "mine.yaml").write_bytes(content)
    assert place.refuses("run", "mine.yaml", code=2) == sentence


@pytest.mark.parametrize("bomb", [BOMB, MERGE_BOMB], ids=["aliases", "merges"])
def test_a_yaml_bomb_needs_neither_time_nor_memory(place: Place, bomb: str) -> None:
    """A billion values in ten lines, read by a process that may have a quarter of a gigabyte and ten seconds."""
    (place.folder / "mine.yaml").write_text(bomb)
    limits = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**28,) * 2); r.setrlimit(r.RLIMIT_CPU, (10,) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{limits}from pipeline.cli import main; main()", "check", "mine.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "frs-pipeline: mine.yaml: line 5: more than 10,000 values, counting each alias as what it stands for; no "
        "configuration is so large\n"
    )


def test_a_python_tag_is_not_run(place: Place) -> None:
    (place.folder / "mine.yaml").write_text("name: !!python/object/apply:os.mkdir [was_run]\n")
    said = place.refuses("run", "mine.yaml", code=2)
    assert said == (
        "mine.yaml: line 1: the tag !!python/object/apply:os.mkdir is not read; write a plain value in its place"
    )
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("student.train.epoch=3", 'student.train.epoch: unknown key; did you mean "epochs"?'),
        (
            "student.train.colour_of_the_sky=3",
            "student.train.colour_of_the_sky: unknown key; remove it or correct its name",
        ),
        ("seed=many", "seed: got 'many'; input should be a valid integer, unable to parse string as an integer"),
        ("student.train.epochs=0", "student.train.epochs: got 0; input should be greater than or equal to 1"),
        ("student.train.lr=.nan", "student.train.lr: got nan; input should be a finite number"),
        ("student.detector.ratios=[0]", "student.detector.ratios.0: got 0; input should be greater than 0"),
        ("input.width=100", "input.width: got 100; must be a multiple of 32, the stride of the backbone's last stage"),
        ("teacher=heavy", "teacher: got 'heavy'; expected a section, with keys of its own"),
        ("data.source=voc", "data.source: got 'voc'; expected one of 'trees', 'coco'"),
        ("data={}", "data.source: missing; this key has no default"),
        (
            "distill.alpha=much",
            "distill.alpha: got 'much'; input should be a valid number, unable to parse string as a number, or input "
            "should be 'auto'",
        ),
        ("export.precisions=[fp8]", "export.precisions.0: got 'fp8'; input should be 'fp32' or 'fp16'"),
        ("student.train.augment.scale=[1, 2, 3]", "student.train.augment.scale: got [1, 2, 3]; it has too many values"),
        (
            "student.train.augment.scale=[2, 1]",
            "student.train.augment: scale must be [from, to] with 0 < from <= to, got [2.0, 1.0]",
        ),
        (
            "name=../up",
            "name: got '../up'; expected ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ (of the run, and of its folder: letters, digits, "
            ". _ -)",
        ),
        (
            "name=/etc/up",
            "name: got '/etc/up'; expected ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ (of the run, and of its folder: letters, "
            "digits, . _ -)",
        ),
        (
            "teacher.checkpoint=~nobody-of-that-name/t.safetensors",
            "teacher.checkpoint: got '~nobody-of-that-name/t.safetensors'; cannot be followed (Could not determine home "
            "directory.); give another path",
        ),
        (
            "teacher.detector.backbone_options={day: 2024-01-01}",
            "teacher.detector.backbone_options: got datetime.date(2024, 1, 1); input was not a valid JSON value",
        ),
        (
            "student.detector.levels=4",
            "teacher.detector.levels (5) and student.detector.levels (4) must agree: FRS compares the pyramids level by "
            "level",
        ),
    ],
)
def test_a_value_that_cannot_be(place: Place, override: str, sentence: str) -> None:
    said = place.refuses("run", "mine.yaml", "--set", override, code=2)
    assert said == f"mine.yaml: 1 fault in the configuration\n  {sentence}"


def test_options_that_contradict_each_other(place: Place) -> None:
    said = place.refuses("run", "mine.yaml", "--set", "control=no", "--set", "gates.min_gain=1", code=2)
    assert said.endswith("  gates.min_gain needs the control to compare with; set control: true")
    said = place.refuses("run", "mine.yaml", "--set", "export.detections=400", code=2)
    assert said.endswith("  export: detections (400) must not exceed candidates (300)")


def test_all_faults_at_once(place: Place) -> None:
    place.configure(seed=-1, input={"height": 250}, export={"detection": 10}, teacher={})
    assert place.refuses("run", "mine.yaml", code=2).splitlines() == [
        "mine.yaml: 4 faults in the configuration",
        "  seed: got -1; input should be greater than or equal to 0",
        "  input.height: got 250; must be a multiple of 32, the stride of the backbone's last stage",
        "  teacher: needs detector (the network), or a checkpoint, which says what it is",
        '  export.detection: unknown key; did you mean "detections"?',
    ]


def test_of_very_many_faults_the_first_are_shown(place: Place) -> None:
    place.configure(**{f"strange_{i}": i for i in range(500)})
    lines = place.refuses("run", "mine.yaml", code=2).splitlines()
    assert (lines[0], len(lines), lines[-1]) == (
        "mine.yaml: 500 faults in the configuration", 52, "  and 450 more",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "--set seed: expected key.subkey=value, e.g. --set student.train.epochs=12"),
        ("=3", "--set =3: expected key.subkey=value, e.g. --set student.train.epochs=12"),
        ("name.x=1", "--set name.x=1: name is a value, not a section"),
        ("seed=[1", "--set seed=[1: not valid YAML: line 1, column 3: expected ',' or ']', but got '<stream end>'"),
        (
            f"seed={'9' * 5000}",
            f"--set seed={'9' * 52}...: a value cannot be read (ValueError: Exceeds the limit (4300 digits) for integer "
            "string conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit); write it "
            "plainly",
        ),
        ("seed=!!bool x", "--set seed=!!bool x: a value cannot be read (KeyError: 'x'); write it plainly"),
    ],
    ids=["no value", "no key", "no section", "no YAML", "a long number", "no bool"],
)
def test_an_override_that_is_none(place: Place, override: str, sentence: str) -> None:
    assert place.refuses("run", "mine.yaml", "--set", override, code=2) == sentence
