"""report: report.json for tools, report.html and report.md for people; the gates are judged here."""

from stages.report.show import show
from stages.report.stage import stage

__all__ = ["show", "stage"]
