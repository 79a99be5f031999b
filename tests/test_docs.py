"""The documents say what the code does: their excerpts are in it, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.study import read_rows
from benchmarks.study_plan import STUDIES
from benchmarks.study_tables import markdown, markdown_parts

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_methods_excerpts_are_the_code() -> None:
    code = "\n".join(path.read_text() for path in sorted((ROOT / "frs" / "distill").glob("*.py")))
    excerpts = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "method.md").read_text(), flags=re.DOTALL)
    assert len(excerpts) == 8
    for excerpt in excerpts:
        assert excerpt in code


def test_the_studys_tables_are_its_rows() -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- table (\w+)( --parts)? -->\n(.*?)\n<!-- end -->", page, flags=re.DOTALL)
    assert tables
    for name, parts, text in tables:
        plan = STUDIES[name]
        table = (markdown_parts if parts else markdown)(read_rows(plan), plan, plan.splits[-1])
        assert text == table.strip(), f"python -m benchmarks.study table {name}{parts}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in _anchors(path.read_text()), f"{document.name} links to {target}"


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings, and those that are written out."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]*)">', text))
