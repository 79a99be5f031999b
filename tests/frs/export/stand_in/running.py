"""Of a stand-in: the runtime and what it opens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.frs.export.stand_in.module import Family


def add_runtime(module: Any, family: Family) -> None:
    """The names that loading needs; any plan but b"" deserialises."""
    calls = module.calls

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            calls.note("deserialize_cuda_engine", bytes(serialized_engine))
            return SimpleNamespace(**dict.fromkeys(family.memory, 0)) if serialized_engine else None

    module.Runtime = Runtime
