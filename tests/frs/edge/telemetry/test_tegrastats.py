"""Golden values are read off the lines by eye; memory is multiplied by 2^20 / 10^6 by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frs.edge.telemetry.sample import Sample
from frs.edge.telemetry.tegrastats import parse_line
from tests.frs.edge.telemetry.lines import AGX_ORIN, ONE_CORE, ORIN_NANO, REAL


def parsed(line: str) -> Sample:
    sample = parse_line(line, 5)
    assert sample is not None
    assert sample.memory_used_mb is not None
    load = None if sample.cpu_load is None else round(sample.cpu_load, 6)
    return replace(sample, cpu_load=load, memory_used_mb=round(sample.memory_used_mb, 6))


def test_orin_nano() -> None:
    assert parsed(ORIN_NANO) == Sample(
        5,
        power_mw={"VDD_IN": 5263, "VDD_CPU_GPU_CV": 717, "VDD_SOC": 1794},
        temperature_c={"cpu": 44.156, "soc2": 43.781, "soc0": 44.687, "gpu": 45.968, "tj": 45.968, "soc1": 45.312},
        cpu_load=4.333333,
        gpu_load=0,
        memory_used_mb=2767.192064,
        clocks_mhz={"cpu": 729},
    )


def test_cores_that_are_off_and_the_momentary_power() -> None:
    assert parsed(ONE_CORE) == Sample(
        5,
        power_mw={"VDD_IN": 5832, "VDD_CPU_GPU_CV": 1307, "VDD_SOC": 1468},
        temperature_c={"cpu": 51, "tj": 51},
        cpu_load=1,
        gpu_load=7,
        memory_used_mb=3769.63072,
        clocks_mhz={"cpu": 729, "emc": 2133, "gpu": 306},
    )


def test_agx_orin_without_swap_and_with_peaks() -> None:
    assert parsed(AGX_ORIN) == Sample(
        5,
        power_mw={"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500},
        temperature_c={"cpu": 52.968},
        cpu_load=23,
        gpu_load=12,
        memory_used_mb=21644.705792,
        clocks_mhz={"cpu": 2201, "emc": 3199, "gpu": 1300},
    )


@pytest.mark.parametrize(
    ("field", "load", "clock"),
    [
        ("GR3D_FREQ 7%@[306]", 7, 306),
        ("GR3D_FREQ 12%@[1300,0]", 12, 1300),  # a cluster that is gated
        ("GR3D_FREQ 99%@1377", 99, 1377),
        ("GR3D_FREQ 7%", 7, None),
        ("GR3D_FREQ @[314,314,314]", None, 314),  # Thor
        ("GR3D_FREQ off", None, None),
        ("", None, None),  # Thor too
    ],
)
def test_forms_of_the_gpu(field: str, load: float | None, clock: float | None) -> None:
    sample = parsed(f"RAM 1/2MB CPU [0%@972] {field} tj@31C VDD_GPU -392mW/-392mW VIN 5517mW NC 0mW/0mW\n")
    assert sample.gpu_load == load
    assert sample.clocks_mhz == {"cpu": 972} | ({} if clock is None else {"gpu": clock})
    assert sample.power_mw == {"VDD_GPU": -392, "VIN": 5517}  # NC: not connected
    assert sample.temperature_c == {"tj": 31}


def test_a_sensor_that_is_powered_down_has_no_temperature() -> None:
    assert parsed("RAM 1/2MB cv0@-256C gpu@-256C tj@-12.5C\n").temperature_c == {"tj": -12.5}


def test_all_cores_off_is_no_load() -> None:
    assert parsed("RAM 1/2MB CPU [off,off]\n").cpu_load is None


def values(sample: Sample | None) -> set[tuple[str, str, float]]:
    """Everything that a sample says, each with its name."""
    if sample is None:
        return set()
    single = {"cpu_load": sample.cpu_load, "gpu_load": sample.gpu_load, "memory": sample.memory_used_mb}
    groups = {"power": sample.power_mw, "temperature": sample.temperature_c, "clock": sample.clocks_mhz}
    return {("", name, value) for name, value in single.items() if value is not None} | {
        (group, name, value) for group, found in groups.items() for name, value in found.items()
    }


@pytest.mark.parametrize("line", REAL)
def test_a_line_cut_anywhere_says_less_but_nothing_else(line: str) -> None:
    whole = values(parse_line(line, 0))
    seen = set()
    for end in range(len(line)):
        part = values(parse_line(line[:end], 0))
        assert part <= whole, line[:end]
        assert values(parse_line(line[:end] + "\n" if line[end].isspace() else line[:end], 0)) <= whole
        seen |= part
    assert len(whole - seen) == 1  # only the last word needs the line break
    for start in range(1, len(line)):
        assert values(parse_line(line[start:], 0)) in (set(), whole), line[start:]


@given(line=st.sampled_from(REAL), at=st.lists(st.integers(0, 400), min_size=1, max_size=12))
def test_bytes_that_are_no_text_take_values_away_and_add_none(line: str, at: list[int]) -> None:
    garbled = "".join("\ufffd" if i in at else character for i, character in enumerate(line))
    found, whole = values(parse_line(garbled, 0)), values(parse_line(line, 0))
    assert found <= whole


@given(first=st.sampled_from(REAL), second=st.sampled_from(REAL), end=st.integers(0, 400))
def test_a_cut_line_with_the_next_one_behind_it_is_not_mixed_with_it(first: str, second: str, end: int) -> None:
    end = min(end, len(first) - 1)
    found = parse_line(first[:end] + second, 0)
    assert found is None or (end == 0 and found == parse_line(second, 0))


@given(st.text(), st.sampled_from(["", "RAM ", "05-05-2025 06:05:39 RAM 1/2MB "]))
def test_any_text_is_read_without_an_error(text: str, beginning: str) -> None:
    parse_line(beginning + text, 0)


@given(
    st.lists(
        st.sampled_from(
            ["RAM", "CPU", "[1%@729]", "[,]", "GR3D_FREQ", "7%@[]", "@", "%", "mW/", "VDD_IN", "5mW", "@C", "[off]"]
        ),
        max_size=8,
    )
)
def test_words_in_any_order_are_read_without_an_error(words: list[str]) -> None:
    found = parse_line("RAM 1/2MB " + " ".join(words) + "\n", 0)
    for _, _, value in values(found):
        assert value in (1 * 1.048576, 1, 729, 5)


def test_numbers_of_thousands_of_digits() -> None:
    n = "9" * 5000
    line = f"RAM {n}/{n}MB CPU [{n}%@{n}] EMC_FREQ {n}%@{n} GR3D_FREQ {n}%@[{n}] tj@{n}C VDD_IN {n}mW\n"
    assert parse_line(line, 0) == Sample(0)


def test_digits_of_other_scripts_are_no_digits() -> None:
    assert parse_line("RAM \u0663/\u0664MB VDD_IN \u0665mW tj@\u0666C\n", 0) == Sample(0)


def test_a_line_of_something_else() -> None:
    assert parse_line("tegrastats: not permitted\n", 0) is None
    assert parse_line("", 0) is None
    assert replace(parsed("RAM 1/2MB\n"), memory_used_mb=None) == Sample(5)
