"""What was asked of a stand-in."""

from __future__ import annotations

from typing import Any


class Calls(list[tuple[Any, ...]]):
    """In order, each as (name, arguments ...)."""

    def note(self, name: str, *arguments: Any) -> None:
        self.append((name, *arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [tuple(arguments) for called, *arguments in self if called == name]
