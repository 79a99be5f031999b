"""What was looked at before a run, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Verdict(Enum):
    """Of one thing that was looked at. It is true where a run can go on."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "FAULT"

    def __bool__(self) -> bool:
        return self is not Verdict.FAULT


Finding = tuple[Verdict, str, str]
"""(verdict, what was looked at, what was found: a line, and further ones where there is a list)."""


def as_table(findings: Sequence[Finding]) -> str:
    """A line each, in columns."""
    width = max(len(what) for _, what, _ in findings)
    return "\n".join(f"  {verdict.value:7}  {what:{width}}  {found}" for verdict, what, found in findings)
