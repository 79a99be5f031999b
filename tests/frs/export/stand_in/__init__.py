"""Modules that stand in for TensorRT 10, 11 and TensorRT-RTX, where choices are tested and nothing else.

Each has just the names that its version has (of those that matter here: a table in the docs, and the sources of NVIDIA's
Python bindings), so that code which takes another for granted meets an AttributeError. They build nothing, run nothing and
know nothing of NVIDIA's behaviour: whether a library takes a graph, only that library can say.
"""

from tests.frs.export.stand_in.module import FAMILIES, Family, StandIn, stand_in

__all__ = ["FAMILIES", "Family", "StandIn", "stand_in"]
