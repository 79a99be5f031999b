"""Durations for people."""

from __future__ import annotations


def seconds(duration: float) -> str:
    """A duration for people: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"."""
    if duration < 9.95:
        return f"{duration:.1f} s"
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
