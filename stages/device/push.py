"""`frs-pipeline device push`: a bundle to a device over ssh, `device run` there, and what it measured back here.

Four connections: what is there, the upload, the run, the results. What one of them left at the far end the next push of
the same bundle takes up: a whole bundle is not sent again, half of one is completed, and a run goes on.
"""

from __future__ import annotations

import json
import re
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from frs.errors import RemoteError, RuntimeMissing
from frs.remote import Remote
from pipeline import __version__
from pipeline.errors import Busy

FOLDER = "~/.cache/frs-pipeline/push"
"""On the device; in it a folder for each bundle."""
QUOTED = 5
"""Of the last lines of a device run that failed, those which its error repeats."""

# POSIX shell, run there; $1 is always the bundle's folder, $2 and on as each says. One line each: a C shell may have to
# carry them to `sh`.
_IN_FOLDER = (
    'umask 077; folder="${XDG_CACHE_HOME:-$HOME/.cache}/frs-pipeline/push/$1"; mkdir -p "$folder" && cd "$folder" || exit 73; '
)
_COMMAND = 'case "$2" in "~/"*) command="$HOME/${2#"~/"}";; *) command="$2";; esac; '
_LOOK = (
    "exec 2>&1; " + _IN_FOLDER + _COMMAND + 'echo "disk $(LC_ALL=C df -Pk . | tail -n 1)"; '
    'echo "whole $({ sha256sum < bundle.tar; } 2>/dev/null)"; echo "part $({ wc -c < bundle.part; } 2>/dev/null)"; '
    'command -v "$command" >/dev/null || exit 127; "$command" device info; exit $?'
)
_RECEIVE = (  # $2: sha256, $3: size, $4: bytes that are there
    "exec 2>&1; export LC_ALL=C; " + _IN_FOLDER + '[ "$4" -gt 0 ] || : > bundle.part || exit 74; '
    'cat >> bundle.part || exit 74; [ "$(wc -c < bundle.part)" -ge "$3" ] || exit 75; '
    'sum="$(sha256sum < bundle.part)"; [ "${sum%% *}" = "$2" ] || { rm -f bundle.part; exit 65; }; mv bundle.part bundle.tar'
)
_RUN = _IN_FOLDER + _COMMAND + '"$command" device run bundle.tar -o results --attended 2>&1; exit $?'
_RESULTS = _IN_FOLDER + "cat results/device.json"
_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large")


class Screen(Protocol):
    """Where a push says what it does; the console."""

    def print(self, text: str = "") -> None: ...

    def update(self, done: float, total: float, **figures: float | str) -> None: ...

    def working(self, label: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Bundle:
    """What is pushed: the archive, its sha256, and the number of its format."""

    path: Path
    sha256: str
    format: int

    @property
    def key(self) -> str:
        """The name of its folder on a device."""
        return self.sha256[:16]


@dataclass(frozen=True)
class _Found:
    """At the far end. free: bytes, None where that cannot be told. whole: sha256 of the bundle that is there; part: bytes of
    one that was begun. info: of `device info`."""

    free: int | None
    whole: str
    part: int
    info: dict[str, Any]


def push(remote: Remote, bundle: Bundle, command: str, screen: Screen) -> tuple[int, str]:
    """Do it, and return the exit code of the device run, 0 or 3, and device.json as it came: text from another machine.

    command: of frs-pipeline at the far end. Raises RemoteError, RuntimeMissing or Busy where there is no result.
    """
    found = _look(remote, bundle, command)
    screen.print(f"{remote.host}: {_described(found.info)}")
    _check(remote, found.info, bundle, command, screen)
    if found.whole == bundle.sha256:
        screen.print(f"{remote.host}: the bundle is there already")
    else:
        _upload(remote, bundle, found, screen)
    code = _run(remote, bundle, command, screen)
    got, text = remote.ask(_RESULTS, bundle.key)
    if got:
        raise RemoteError(f"{remote.host}: the device run ended well, but {FOLDER}/{bundle.key}/results has no device.json")
    return code, text


def _look(remote: Remote, bundle: Bundle, command: str) -> _Found:
    code, answer = remote.ask(_LOOK, bundle.key, command)
    if code == 73:
        raise RemoteError(f"{remote.host}: {FOLDER} cannot be written to ({_last(answer)}); make room or correct that there")
    if code in (126, 127):
        raise RemoteError(
            f"{remote.host}: there is no {command} to be found ({_last(answer)}); a command over ssh has a shorter PATH than a "
            "login: name it in full, as in --command '~/venv/bin/frs-pipeline', or install it there"
        )
    if "No such command" in answer:
        raise RemoteError(f"{remote.host}: its frs-pipeline is too old for `device push`; install {__version__} there")
    document = re.search(r"^\{$.*^\}$", answer, flags=re.DOTALL | re.MULTILINE)
    try:
        info = json.loads(document[0] if document and code == 0 else "")
        _require(info)
    except (ValueError, LookupError, TypeError):
        raise RemoteError(
            f"{remote.host}: `{command} device info` does not answer as it should (exit {code}): {_last(answer)}"
        ) from None
    said = dict(line.partition(" ")[::2] for line in answer.splitlines() if line.startswith(("disk ", "whole ", "part ")))
    free = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", said.get("disk", ""))
    part = said.get("part", "").strip()
    return _Found(
        free=int(free[1]) * 1024 if free else None,
        whole=said.get("whole", "").partition(" ")[0],
        part=int(part) if part.isdecimal() else 0,
        info=info,
    )


def _require(info: Any) -> None:
    """Raises one of LookupError, TypeError and ValueError for what is not `device info`'s."""
    if not isinstance(info["frs_pipeline"], str) or not isinstance(info["bundle_format"], int):
        raise TypeError
    for name in ("onnxruntime", "tensorrt", "pycocotools"):
        library = info["libraries"][name]
        if not all(isinstance(library[key] or "", str) for key in ("version", "missing")):
            raise TypeError
    if not isinstance(info["device"], str):
        raise TypeError


def _described(info: dict[str, Any]) -> str:
    libraries = ", ".join(
        f"{name} {each['version']}" for name, each in info["libraries"].items() if not each["missing"]
    )
    return f"{info['device']}; frs-pipeline {info['frs_pipeline']}; {libraries or 'no runtime'}"


def _check(remote: Remote, info: dict[str, Any], bundle: Bundle, command: str, screen: Screen) -> None:
    if info["bundle_format"] != bundle.format:
        raise RemoteError(
            f"{remote.host}: its frs-pipeline {info['frs_pipeline']} reads bundles of format {info['bundle_format']}, this one "
            f"({__version__}) writes {bundle.format}; install the same version at both ends"
        )
    if info["frs_pipeline"] != __version__:
        screen.print(f"{remote.host}: its frs-pipeline is {info['frs_pipeline']}, the one here {__version__}; they get on")
    libraries = info["libraries"]
    if libraries["onnxruntime"]["missing"] and libraries["tensorrt"]["missing"]:
        reasons = "; ".join(f"{name}: {libraries[name]['missing']}" for name in ("onnxruntime", "tensorrt"))
        raise RuntimeMissing(
            f"{remote.host}: neither ONNX Runtime nor TensorRT can be imported by {command} ({reasons}); there, pip install "
            "onnxruntime into its environment, or make that with --system-site-packages so that it sees JetPack's TensorRT"
        )
    if libraries["pycocotools"]["missing"]:
        raise RuntimeMissing(
            f"{remote.host}: {command} lacks pycocotools ({libraries['pycocotools']['missing']}), without which nothing is "
            "scored; there, pip install '.[device]' in the project's folder brings it"
        )


def _upload(remote: Remote, bundle: Bundle, found: _Found, screen: Screen) -> None:
    size = bundle.path.stat().st_size
    begun = found.part if found.part <= size else 0
    if found.free is not None and found.free < 2 * size - begun:
        raise RemoteError(
            f"{remote.host}: its disk has {_mb(found.free)} free; the bundle takes {_mb(size)}, and as much again unpacked; make "
            f"room there (older bundles lie in {FOLDER})"
        )
    done = begun
    if begun:
        screen.print(f"{remote.host}: {_mb(begun)} of the bundle are there already")

    def sent(count: int) -> None:
        nonlocal done
        done += count
        screen.update(done, size, sent=f"{done / 1e6:.1f}/{_mb(size)}")

    with bundle.path.open("rb") as file, screen.working(f"upload to {remote.host}"):
        file.seek(begun)
        code, answer = remote.send(file, sent, _RECEIVE, bundle.key, bundle.sha256, str(size), str(begun))
    if code:
        reasons = {
            65: "the bundle came there damaged and was deleted; give the same command again",
            75: "the bundle came there in part; give the same command again, it continues",
        }
        full = f"its disk is full ({_last(answer)}); make room there (older bundles lie in {FOLDER}) and give the same command again"
        other = f"the bundle could not be written there: {_last(answer)}"
        raise RemoteError(f"{remote.host}: {full if _FULL.search(answer) else reasons.get(code, other)}")
    screen.print(f"{remote.host}: the bundle is there ({_mb(size)})")


def _run(remote: Remote, bundle: Bundle, command: str, screen: Screen) -> int:
    """Exit code 0 or 3; anything else raises."""
    last: deque[str] = deque(maxlen=QUOTED)

    def line(text: str) -> None:
        last.append(text)
        screen.print(f"  {text}")

    with screen.working(f"device run on {remote.host}"):
        code = remote.watch(line, _RUN, bundle.key, command)
    if code not in (0, 3):
        _failed(remote, bundle, code, list(last), command)
    return code


def _failed(remote: Remote, bundle: Bundle, code: int, last: list[str], command: str) -> NoReturn:
    said = "\n  ".join([":", *last]) if last else ""
    if code == 4:
        raise Busy(
            f"{remote.host}: another device run of this bundle is under way there; one whose connection was cut ends by itself "
            f"within a minute. Then give the same command again{said}"
        )
    what = {
        130: "was interrupted there; the same command continues",
        137: "was killed there, most often because the memory was full; end other programs on it and give the same command again",
        143: "was ended there; the same command continues",
    }
    if any(_FULL.search(each) for each in last):
        what[code] = f"found its disk full; make room there (older bundles lie in {FOLDER}) and give the same command again"
    failed = f"failed (exit {code}); to look into it there: cd {FOLDER}/{bundle.key} && {command} device run bundle.tar -o results"
    raise RemoteError(f"{remote.host}: the device run {what.get(code, failed)}{said}")


def _last(answer: str) -> str:
    """The last line that says anything, cut."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
