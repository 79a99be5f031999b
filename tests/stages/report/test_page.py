from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from stages.report.page import page
from tests.stages.report.browser import CHROMIUM, visit
from tests.stages.report.lab import HOSTILE, NO_PICTURES, pictures, report, without_control

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
CONFIG = "version: 1\nname: '</pre><script>alert(2)</script>'\n"


def text_of(made: str) -> str:
    """What a reader sees: the tags taken away, entities resolved."""
    body = made[made.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture(scope="module")
def made() -> str:
    return page(report(), pictures(), CONFIG)


def test_the_verdict_stands_first(made: str) -> None:
    text = text_of(made)
    verdict = text.index("Distillation helped: +2.5 AP against the control")
    assert verdict < text.index("95% interval +1.0 to +4.0") < text.index("What was won and lost")
    assert text.index("1 of 1 gates failed") < text.index("What was won and lost")
    assert "gain: not measured, only 3 images could be compared" in text


@pytest.mark.parametrize(
    "words",
    [
        "1,234 validation images with 5,678 objects",
        "20% of the teacher's 5.0 M",
        "alpha 0.0001, beta 0.1 (measured on the first steps)",
        "drawn from a score of 0.50 (control), 0.75 (student), where the F1 of each is highest",
        "student.onnx AP 32.5 in ONNX Runtime 4.0 " + "b" * 64,
        "student.plan no engine: no <b>builder</b> here – –",
        "frs-pipeline run 'a <b>.yaml' --set seed=0",
        "name: '</pre><script>alert(2)</script>'",
        "Not measured: energy (no power rail); temperature (",
        "memory gb 8.0",
        HOSTILE,
    ],
)
def test_a_reader_finds(made: str, words: str) -> None:
    assert words in text_of(made)


def test_nothing_from_outside_becomes_markup(made: str) -> None:
    assert "<script" not in made
    assert "<b>builder" not in made
    assert "$x$" in text_of(made), "a class name is no formula"


def test_every_picture_is_inside_and_described(made: str) -> None:
    images = re.findall(r'<img src="([^"]*)" alt="([^"]+)"', made)
    assert len(images) == made.count("<img") == 6
    for source, _ in images:
        assert source.startswith("data:image/jpeg;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size == (60, 40)
    assert re.findall(r"<svg (?!role=\"img\" aria-label=\"[^\"]+\")", made) == []


def test_every_chart_is_a_whole_drawing_with_ids_of_its_own(made: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", made, flags=re.DOTALL)
    assert len(drawings) == 7, "gain, cost, kinds, classes, loss, distillation, sensitivity; no AP during the training"
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    ids = re.findall(r'\bid="([^"]*)"', made)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", made)) <= set(ids)


def test_colours_of_charts_are_the_pages(made: str) -> None:
    used = set(re.findall(r"var\(--([a-z]+)\)", "".join(re.findall(r"<svg .*?</svg>", made, flags=re.DOTALL))))
    defined = set(re.findall(r"--([a-z]+):", made))
    assert {"ink", "muted", "teacher", "control", "student", "features", "classes"} <= used <= defined


def test_what_failed_is_shown_with_both_sets_of_boxes() -> None:
    gate = {"name": "parity.student_int8.unmatched", "limit": 0.1, "value": 0.125, "passed": False, "measured_on": 400}
    shown = replace(NO_PICTURES, disagreements={"student_int8": pictures().maps})
    made = page(report(gates=[gate]), shown, CONFIG)
    assert "measured on 400); worst in <script>alert(1)</script>, b.png" in text_of(made)
    assert made.count("<img") == 2
    assert "<script" not in made


def test_a_run_without_int8_says_nothing_of_it() -> None:
    made = page(report(quantization={}, gates=[]), NO_PICTURES, CONFIG)
    assert "int8 costs" not in text_of(made)
    assert 'id="sensitivity-' not in made


def test_ap_during_the_training_is_drawn_where_it_was_measured() -> None:
    with_ap = report()
    for history in with_ap["training"].values():
        history[-1]["AP"] = 20.0
    assert "Validation AP" in text_of(page(with_ap, NO_PICTURES, CONFIG))


def test_a_run_without_control_says_so_and_compares_nothing() -> None:
    text = text_of(page(without_control(), NO_PICTURES, CONFIG))
    assert "Whether distillation helped was not shown: the run has no control" in text
    assert "Where distillation changed the student" not in text
    assert "AP of the student less" not in text


def test_of_many_classes_the_ones_that_changed_most_are_drawn() -> None:
    many = report(classes=[f"class {number:03d}" for number in range(80)])
    for row in many["accuracy"]:
        gain = {"teacher": 50.0, "control": 0.0, "student": 1.0}[row["model"]]
        row["per_class"] = {name: 20 + gain * number for number, name in enumerate(many["classes"])}
    made = page(many, NO_PICTURES, CONFIG)
    drawn = re.findall(r"<text [^>]*>class (\d+)</text>", made)
    assert sorted(map(int, drawn)) == [*range(15), *range(65, 80)]
    assert set(many["classes"]) <= set(re.findall(r'<th scope="row">([^<]*)</th>', made)), "the table has them all"


def test_class_names_in_charts_are_what_they_were() -> None:
    names = ['id="x" url(#y)', "fill: #040404", "font-family: A; z", "漢" * 20]
    odd = report(classes=names)
    for row in odd["accuracy"]:
        row["per_class"] = dict.fromkeys(names, 10.0)
    drawn = re.findall(r"<text [^>]*>([^<]*)</text>", page(odd, NO_PICTURES, CONFIG))
    assert {*names[:3], "漢" * 11 + "…"} <= {html.unescape(text) for text in drawn}


def test_without_control_the_classes_stand_in_the_order_of_the_students_ap() -> None:
    alone = without_control()
    alone["classes"] = ["a", "b", "c"]
    for row in alone["accuracy"]:
        row["per_class"] = {"a": 3.0, "b": 1.0, "c": 2.0}
    made = page(alone, NO_PICTURES, CONFIG)
    assert re.findall(r"<text [^>]*>([abc])</text>", made) == ["b", "c", "a"], "from below"
    assert "in the order of the student's AP." in text_of(made)
    assert "gain" not in text_of(made).split("AP by class")[1].split("AP of each")[0]


def test_one_epoch_is_a_mark_in_its_place() -> None:
    short = report()
    for model, history in short["training"].items():
        short["training"][model] = history[:1]
    loss = re.findall(r"Mean detection loss.*?</svg>", page(short, NO_PICTURES, CONFIG), flags=re.DOTALL)[0]
    assert re.findall(r"<text [^>]*>(\d+)</text>", loss)[0] == "1", "an epoch is a whole number"
    assert len(re.findall("<use ", loss)) >= 3, "a mark for each model"


def test_a_teacher_that_was_given_has_no_curve() -> None:
    given = report()
    given["training"]["teacher"] = []
    assert "Detection loss" in text_of(page(given, NO_PICTURES, CONFIG))


@needs_chromium
def test_a_browser_opens_it_in_silence(made: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(made, encoding="utf-8")
    seen = visit(tmp_path / "report.html", tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert "Distillation helped" in seen.dom
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in seen.dom


@needs_chromium
def test_the_browser_would_have_told(tmp_path: Path) -> None:
    loud = "<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>"
    (tmp_path / "loud.html").write_text(loud)
    seen = visit(tmp_path / "loud.html", tmp_path)
    assert any("no" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]


@needs_chromium
def test_the_page_forbids_itself_all_requests_and_scripts(made: str, tmp_path: Path) -> None:
    """Were something to slip through the template, the browser would still refuse it."""
    slipped = made.replace(
        "<main>", "<main><img src='http://127.0.0.1:9/x.png'><script>document.title = 'run'</script>"
    )
    (tmp_path / "slipped.html").write_text(slipped, encoding="utf-8")
    seen = visit(tmp_path / "slipped.html", tmp_path)
    assert seen.requests == []
    assert "<title>run" not in seen.dom
    assert len(seen.console) == 2


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(made: str, tmp_path: Path, width: int) -> None:
    asks = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')</script></body>"
    may_ask = made.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'").replace(
        "</body>", asks
    )
    (tmp_path / "report.html").write_text(may_ask, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"<iframe src='report.html' width={width} height=800></iframe><p></p>"
        "<script>onmessage = message => document.querySelector('p').textContent = message.data</script>"
    )
    inner, needed = map(int, re.findall(r"<p>(\d+),(\d+)</p>", visit(tmp_path / "frame.html", tmp_path).dom)[0])
    assert needed <= inner == width
