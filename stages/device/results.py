"""`runs/<name>/devices/<machine>/`: what a device measured, as text from another machine, and its place in the run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frs.errors import RemoteError
from pipeline.errors import Busy
from pipeline.files import locked, sync_tree

FOLDER = "devices"
FILE = "device.json"
PAGE = "device.html"
SCHEMA = 1

Key = tuple[str, str, str]
"""model, precision, runtime."""


@dataclass(frozen=True)
class Figures:
    """Of one artifact on one machine; None: not measured there.

    p50, p99: end to end at the least batch that was timed, ms; memory, gpu_memory: peaks, MB; energy: mJ a call; ap: percent,
    of the file itself, on `images` images. doubtful: the machine's own warning not to quote its times.
    """

    p50: float | None = None
    p99: float | None = None
    memory: float | None = None
    gpu_memory: float | None = None
    energy: float | None = None
    ap: float | None = None
    images: int | None = None
    doubtful: bool = False


@dataclass(frozen=True)
class Machine:
    """What was measured on one machine. name: of its folder, or of this machine; device: what it calls itself.

    files: (model, precision) -> sha256 of the ONNX files that it had; empty where it does not say. state: power mode, clocks
    and the like; warnings: in its own words.
    """

    name: str
    device: str
    created: str
    figures: dict[Key, Figures]
    files: dict[tuple[str, str], str]
    state: dict[str, str]
    warnings: tuple[str, ...]


def parse(text: str) -> dict[str, Any]:
    """A device.json. Raises ValueError, LookupError or TypeError for what is none."""
    document = json.loads(text, parse_constant=_no_number)
    if document["schema"] != SCHEMA or document["kind"] != "device":
        raise ValueError(f"schema {document['schema']}, kind {document['kind']!r}")
    machine("", document)
    failed_gates(document)
    return dict(document)


def failed_gates(document: dict[str, Any]) -> list[str]:
    """The names of those that were not passed. Raises as `parse` does."""
    return [_text(gate["name"]) for gate in document["gates"] if gate["passed"] is not True]


def machine(name: str, report: dict[str, Any]) -> Machine:
    """Of a device.json, or of a report.json, which have the same keys. Raises as `parse` does."""
    profiles = [row for row in report["profiles"] if isinstance(row, dict)]
    figures: dict[Key, Figures] = {}
    for row in sorted(profiles, key=lambda row: _count(row["batch"]) or 0, reverse=True):
        figures[_key(row)] = _figures(row)
    for row in report["accuracy"]:
        if row["decode"] == "graph" and row["runtime"] != "torch":
            key = _key(row)
            known = figures.get(key, Figures())
            figures[key] = replace(known, ap=_number(row["AP"]), images=_count(row["images"]))
    warnings = [_text(words) for row in profiles for words in row.get("warnings", ())]
    return Machine(
        name=name,
        device=_text(report["device"] if "device" in report else _named(report)),
        created=_text(report["created"]),
        figures=figures,
        files={
            (_text(file["model"]), _text(file["kind"])): _text(file["sha256"])
            for file in report.get("files", ())
            if file["kind"] != "weights"
        },
        state=_state(profiles),
        warnings=tuple(dict.fromkeys(warnings)),
    )


@contextmanager
def filled(run_dir: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """A scratch folder, and one for results that becomes `devices/<name>` in one step where the block ends well.

    Only one at a time; what was there before stays until then. Raises Busy.
    """
    devices = run_dir / FOLDER
    target, work, before = devices / name, devices / f".{name}.work", devices / f".{name}.before"

    def busy(holder: int | None) -> None:
        process = "another process" if holder is None else f"process {holder}"
        raise Busy(f"{target}: {process} pushes to this machine already; wait until it has ended.")

    with locked(devices / f".{name}.lock", busy=busy):
        _tidy(target, work, before)  # after a kill
        results = work / "results"
        results.mkdir(parents=True)
        try:
            yield work, results
            sync_tree(results)
            if target.exists():
                target.rename(before)
            results.rename(target)
        finally:
            _tidy(target, work, before)


def _tidy(target: Path, work: Path, before: Path) -> None:
    if before.is_dir() and not target.exists():  # ended between the two renames
        before.rename(target)
    shutil.rmtree(before, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)


def read(run_dir: Path) -> tuple[list[Machine], list[str]]:
    """Every device of a run, by name, and a sentence for each whose file cannot be read."""
    found, faults = [], []
    for path in sorted((run_dir / FOLDER).glob(f"*/{FILE}")):
        if path.parent.name.startswith("."):
            continue
        try:
            found.append(machine(path.parent.name, parse(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            faults.append(
                f"{path} is damaged or was written by another version ({type(error).__name__}: {error}); push to it again"
            )
    return found, faults


def checked(host: str, text: str, bundle: str) -> dict[str, Any]:
    """The device.json that a host sent. Raises RemoteError unless it is one, and of the bundle with this sha256."""
    try:
        document = parse(text)
        measured = document["bundle_sha256"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RemoteError(
            f"{host}: its {FILE} is damaged, or was written by another version ({type(error).__name__}: {str(error)[:200]}); "
            "nothing was taken over"
        ) from None
    if measured != bundle:
        raise RemoteError(f"{host}: its {FILE} is of another bundle; nothing was taken over")
    return document


def is_page(text: str) -> bool:
    """Whether a page from another machine begins as ours do: by forbidding itself all scripts and requests.

    What follows can take nothing of that back, and a browser keeps to it, whoever wrote the page.
    """
    template = (Path(__file__).parent / "templates" / PAGE).read_text(encoding="utf-8")
    head = template[template.index("<!doctype") : template.index("<title>")]
    return text.startswith(head)


def _key(row: dict[str, Any]) -> Key:
    return _text(row["model"]), _text(row["precision"]), _text(row["runtime"])


def _figures(profile: dict[str, Any]) -> Figures:
    latency = profile["latency_ms"]
    return Figures(
        p50=_number(latency["p50"]),
        p99=_number(latency["p99"]),
        memory=_number(profile.get("peak_memory_mb")),
        gpu_memory=_number(profile.get("device_memory_mb")),
        energy=_number(profile.get("energy_mj")),
        doubtful=bool(profile.get("warnings")),
    )


def _state(profiles: list[dict[str, Any]]) -> dict[str, str]:
    """What its times hold for, from the profiles; what none of them tells is left out."""
    said = {
        key: list(dict.fromkeys(_text(row[key]) for row in profiles if row.get(key) is not None))
        for key in ("power_mode", "clocks")
    }
    temperatures = [
        _number(row["temperature_c"][end])
        for row in profiles
        if row.get("temperature_c") is not None
        for end in ("start", "end")
    ]
    known = [value for value in temperatures if value is not None]
    if known:
        said["temperature, °C"] = [f"{min(known):.0f} to {max(known):.0f}"]
    if any(row.get("throttled") is not None for row in profiles):
        said["throttled"] = ["yes" if any(row.get("throttled") for row in profiles) else "no"]
    return {key.replace("_", " "): ", ".join(values) for key, values in said.items() if values}


def _named(report: dict[str, Any]) -> Any:
    described = report["environment"]["machine"]
    return described["gpu"]["name"] if described["gpu"] else described["cpu"]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value[:300]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise TypeError(f"{value!r:.100} is no number")  # NaN neither; an integer may have a thousand digits
    return float(value)


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{value!r:.100} is no count")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")
