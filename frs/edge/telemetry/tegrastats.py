"""A line of NVIDIA's `tegrastats`.

Source: "Tegrastats Utility" in NVIDIA's Jetson Linux Developer Guide, and lines from Orin and Thor boards. Fields come and
go with the board, the release and the user's rights, so each is looked for by its own form and none is expected.

A line may arrive damaged (the process was killed, a buffer overflowed). A value is taken only from a word that is whole: its
unit is there and white space follows it. A line that was cut at its beginning is not read at all, since what is left of a
name cannot be told from a name. So a damaged line yields some of the values of the whole line, never others; only digits
that are lost or changed inside a number cannot be seen.
"""

from __future__ import annotations

import re
from itertools import pairwise
from statistics import fmean

from frs.edge.telemetry.sample import Sample

_BEGINNING = re.compile(r"(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d )?RAM ", re.ASCII)
_NUMBER = r"\d{1,9}"  # more digits are damage, and int() refuses thousands of them
_DEGREES = r"-?\d{1,3}(?:\.\d{1,9})?C"
_MEMORY = re.compile(rf"({_NUMBER})/{_NUMBER}MB", re.ASCII)
_CORE = re.compile(rf"(\d{{1,3}})%@({_NUMBER})|off", re.ASCII)
_GPU = re.compile(rf"(?:(\d{{1,3}})%)?(?:@({_NUMBER})|@\[({_NUMBER}(?:,{_NUMBER})*)\])?", re.ASCII)
_EMC = re.compile(rf"(?:\d{{1,3}}%)?@({_NUMBER})", re.ASCII)
_RAIL = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_POWER = re.compile(rf"(-?{_NUMBER})mW(?:/-?{_NUMBER}mW){{0,2}}", re.ASCII)  # now, average[, peak]
_TEMPERATURE = re.compile(rf"(\w+)@({_DEGREES})(?:/{_DEGREES})?", re.ASCII)

_MIB = 1.048576  # tegrastats writes MB for 2^20 bytes: 125772MB is /proc/meminfo's total of a board of 128 GB
_OFF_C = -200  # a sensor whose block is powered down answers -256 C
_NOT_CONNECTED = "NC"


def parse_line(line: str, time_ns: int) -> Sample | None:
    """The reading in a line, line break included; None where the line is none of tegrastats' or lacks its beginning.

    Of "5263mW/5250mW" the first value is taken, which is the momentary one. The load of the CPU is the mean over the cores
    that are on. Never raises.
    """
    words = line.split()
    if not line[-1:].isspace():
        words = words[:-1]
    if not _BEGINNING.match(line) or words.count("RAM") != 1:
        return None
    power: dict[str, float] = {}
    clocks: dict[str, float] = {}
    loads: dict[str, float] = {}
    memory = None
    for name, value in pairwise(words):
        if name == "RAM" and (match := _MEMORY.fullmatch(value)):
            memory = int(match[1]) * _MIB
        elif name == "CPU":
            _read_cores(value, loads, clocks)
        elif name == "GR3D_FREQ" and (match := _GPU.fullmatch(value)):
            if match[1]:
                loads["gpu"] = float(match[1])
            if listed := match[2] or match[3]:
                clocks["gpu"] = float(max(map(int, listed.split(","))))
        elif name == "EMC_FREQ" and (match := _EMC.fullmatch(value)):
            clocks["emc"] = float(match[1])
        elif name != _NOT_CONNECTED and _RAIL.fullmatch(name) and (match := _POWER.fullmatch(value)):
            power[name] = float(match[1])
    temperatures = {m[1]: float(m[2][:-1]) for m in map(_TEMPERATURE.fullmatch, words) if m}
    return Sample(
        time_ns,
        power_mw=power,
        temperature_c={name: value for name, value in temperatures.items() if value > _OFF_C},
        cpu_load=loads.get("cpu"),
        gpu_load=loads.get("gpu"),
        memory_used_mb=memory,
        clocks_mhz=clocks,
    )


def _read_cores(value: str, loads: dict[str, float], clocks: dict[str, float]) -> None:
    """[1%@729,off,...]: the load and the clock of each core, unless one of them is damaged."""
    if not (value.startswith("[") and value.endswith("]")):
        return
    cores = [_CORE.fullmatch(core) for core in value[1:-1].split(",")]
    running = [core for core in cores if core and core[1]]
    if all(cores) and running:
        loads["cpu"] = fmean(int(core[1]) for core in running)
        clocks["cpu"] = float(max(int(core[2]) for core in running))
