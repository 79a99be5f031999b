"""`frs-pipeline device push`: a bundle to a device over ssh, `device run` there, and what it measured back here.

What a push leaves at the far end the next one of the same bundle takes up: a whole bundle is not sent again, half of one
is completed, and a device run goes on where it ended.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from frs.errors import RemoteError, RuntimeMissing
from frs.remote import Remote
from pipeline import __version__
from pipeline.errors import Busy
from stages.device.results import FILE, PAGE, checked, failed_gates, filled, is_page

FOLDER = "~/.cache/frs-pipeline/push"
"""On the device; in it a folder for each bundle."""
QUOTED = 5
"""Of the last lines of a device run that failed, those which its error repeats."""

# POSIX shell, run there, with nothing of ours in it: what differs comes as $1, $2, ... One line each, since the login shell
# that carries them to `sh` may be another's. Exit codes of their own: 65 damaged, 73 no folder, 74 not written, 75 in part.
_FIND = 'case "$1" in "~/"*) command="$HOME/${1#"~/"}";; *) command="$1";; esac; '
_ENTER = (
    'umask 077; folder="${XDG_CACHE_HOME:-$HOME/.cache}/frs-pipeline/push/$2"; '
    'mkdir -p "$folder" && cd "$folder" || exit 73; '
)
_INFO = f'exec 2>&1; {_FIND} command -v "$command" >/dev/null || exit 127; "$command" device info; exit $?'
_STATE = (
    f'exec 2>&1; export LC_ALL=C; {_ENTER} echo "disk $(df -Pk . | tail -n 1)"; '
    'echo "whole $({ sha256sum < bundle.tar; } 2>/dev/null)"; echo "part $({ wc -c < bundle.part; } 2>/dev/null)"'
)
_RECEIVE = (  # $3: sha256, $4: size, $5: bytes that are there already
    f'exec 2>&1; export LC_ALL=C; {_ENTER} [ "$5" -gt 0 ] || : > bundle.part || exit 74; cat >> bundle.part || exit 74; '
    '[ "$(wc -c < bundle.part)" -ge "$4" ] || exit 75; sum="$(sha256sum < bundle.part)"; '
    '[ "${sum%% *}" = "$3" ] || { rm -f bundle.part; exit 65; }; mv bundle.part bundle.tar'
)
_RUN = f'exec 2>&1; {_FIND} {_ENTER} "$command" device run bundle.tar -o results --attended; exit $?'
_RESULT = f'{_ENTER} cat "results/$3"'
_RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
_NEEDED = ("jinja2", "pycocotools")
_FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large")


class Screen(Protocol):
    """Where a push says what it does; the console."""

    def print(self, text: str = "") -> None: ...

    def update(self, done: float, total: float, **figures: float | str) -> None: ...

    def working(self, label: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class _Bundle:
    """path: of the archive; sha256: of it."""

    path: Path
    sha256: str

    @property
    def key(self) -> str:
        """The name of its folder on a device."""
        return self.sha256[:16]


def push(remote: Remote, run_dir: Path, pack: Callable[[Path], str], command: str, screen: Screen) -> list[str]:
    """Measure a run's bundle on another machine, and put the results into the run; the names of the gates failed there.

    pack: writes the bundle, and says what is in it. command: of frs-pipeline at the far end; "~/" is its home folder.
    Nothing else in the run is touched, and this only in the end. Raises RemoteError, RuntimeMissing or Busy.
    """
    from frs.edge.bundle import sha256_of

    _check(remote, command, screen)
    with filled(run_dir, remote.slug) as (work, results):
        archive = work / "bundle.tar"
        content = pack(archive)
        screen.print(f"bundle: {content}")
        bundle = _Bundle(archive, sha256_of(archive))
        _send(remote, command, bundle, screen)
        _run(remote, command, bundle, screen)
        document = checked(remote.host, _result(remote, command, bundle, FILE), bundle.sha256)
        text = json.dumps(document, indent=2, ensure_ascii=False)
        # Half a surrogate pair becomes the escape that JSON has for it.
        (results / FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
        page = _result(remote, command, bundle, PAGE)
        if is_page(page):
            (results / PAGE).write_text(page, encoding="utf-8")
        else:
            screen.print(f"{remote.host}: its {PAGE} is not as this version's are and stays there")
    return failed_gates(document)


def _check(remote: Remote, command: str, screen: Screen) -> None:
    """That the far end can take the bundle."""
    from frs.edge.bundle import FORMAT

    info = _info(remote, command)
    libraries = info["libraries"]
    there = [(name, libraries[name]["version"]) for name in _RUNTIMES if not libraries[name]["missing"]]
    runtimes = "".join(f", {name} {version or 'of an unknown version'}" for name, version in there)
    screen.print(f"{remote.host}: {info['device']}, frs-pipeline {info['frs_pipeline']}{runtimes}")
    if info["bundle_format"] != FORMAT:
        raise RemoteError(
            f"{remote.host}: its frs-pipeline {info['frs_pipeline']} reads bundles of format {info['bundle_format']}, this one "
            f"({__version__}) writes {FORMAT}; install the same version at both ends"
        )
    if info["frs_pipeline"] != __version__:
        screen.print(f"{remote.host}: the frs-pipeline here is {__version__}; both know bundles of format {FORMAT}")
    if all(libraries[name]["missing"] for name in _RUNTIMES):
        reasons = "; ".join(f"{name}: {libraries[name]['missing']}" for name in _RUNTIMES)
        raise RuntimeMissing(
            f"{remote.host}: {command} can import neither ONNX Runtime nor TensorRT ({reasons}); there, install onnxruntime "
            "into its environment, or make that with --system-site-packages, so that it sees JetPack's TensorRT"
        )
    for name in _NEEDED:
        if libraries[name]["missing"]:
            raise RuntimeMissing(
                f"{remote.host}: {command} cannot import {name} ({libraries[name]['missing']}); there, pip install '.[device]' "
                "in the project's folder brings it"
            )


def _info(remote: Remote, command: str) -> dict[str, Any]:
    """What `device info` says there, as far as it is read here."""
    code, answer = remote.ask(_INFO, command)
    if code in (126, 127):
        raise RemoteError(
            f"{remote.host}: there is no command {command}, or it cannot be started ({_last(answer)}); over ssh PATH is "
            "shorter than in a login: name it in full, as in --command '~/venv/bin/frs-pipeline'; or install it there"
        )
    if "No such command" in answer:
        raise RemoteError(
            f"{remote.host}: its frs-pipeline knows no `device info`; install version {__version__} there"
        )
    document = re.search(r"^\{$.*^\}$", answer, flags=re.DOTALL | re.MULTILINE)
    try:
        info: dict[str, Any] = json.loads(document[0] if document and code == 0 else "")
        libraries = [info["libraries"][name] for name in (*_RUNTIMES, *_NEEDED)]
        texts = [
            info["frs_pipeline"],
            info["device"],
            str(info["bundle_format"]),
            *(each[key] or "" for each in libraries for key in ("version", "missing")),
        ]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RemoteError(
            f"{remote.host}: `{command} device info` does not answer as it should (exit {code}): {_last(answer)}"
        ) from None
    return info


def _send(remote: Remote, command: str, bundle: _Bundle, screen: Screen) -> None:
    """The bundle, or what is missing of it there."""
    size = bundle.path.stat().st_size
    begun = _state(remote, command, bundle, size)
    if begun is None:
        screen.print(f"{remote.host}: the bundle is there already")
        return
    if begun:
        screen.print(f"{remote.host}: {_mb(begun)} of it are there already")
    done = begun

    def sent(count: int) -> None:
        nonlocal done
        done += count
        screen.update(done, size, sent=f"{done / 1e6:.1f}/{_mb(size)}")

    with bundle.path.open("rb") as file, screen.working(f"upload to {remote.host}"):
        file.seek(begun)
        arguments = (command, bundle.key, bundle.sha256, str(size), str(begun))
        code, answer = remote.send(file, sent, _RECEIVE, *arguments)
    if code:
        why = {
            65: "the bundle came there damaged and was deleted; give the same command again",
            75: "the bundle came there in part; give the same command again, it continues",
        }.get(code, f"the bundle could not be written there ({_last(answer)}); look at {FOLDER} there")
        raise RemoteError(f"{remote.host}: {_full(answer) or why}")
    screen.print(f"{remote.host}: the bundle is there ({_mb(size)})")


def _state(remote: Remote, command: str, bundle: _Bundle, size: int) -> int | None:
    """How many bytes of the bundle are there; None: it is there, whole. Raises RemoteError where there is no room for it."""
    code, answer = remote.ask(_STATE, command, bundle.key)
    if code:
        raise RemoteError(f"{remote.host}: {_full(answer) or f'{FOLDER} cannot be used there ({_last(answer)})'}")
    said = dict(line.partition(" ")[::2] for line in answer.splitlines())
    if said.get("whole", "").partition(" ")[0] == bundle.sha256:
        return None
    part = said.get("part", "").strip()
    begun = int(part) if part.isdecimal() and int(part) <= size else 0
    free = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s", said.get("disk", ""))  # df's fourth column, kB
    if free and int(free[1]) * 1024 < 2 * size - begun:
        raise RemoteError(
            f"{remote.host}: its disk has {_mb(int(free[1]) * 1024)} free; the bundle takes {_mb(size)}, and as much again "
            f"unpacked; make room there (what lies in {FOLDER} may be deleted) and give the same command again"
        )
    return begun


def _run(remote: Remote, command: str, bundle: _Bundle, screen: Screen) -> None:
    """`device run` there, which may fail its gates, but nothing else."""
    last: deque[str] = deque(maxlen=QUOTED)

    def line(text: str) -> None:
        last.append(text)
        screen.print(f"  {text}")

    screen.print(f"{remote.host}: device run")
    code = remote.watch(line, _RUN, command, bundle.key)
    if code not in (0, 3):
        _failed(
            remote, code, "\n  ".join(last), f"cd {FOLDER}/{bundle.key} && {command} device run bundle.tar -o results"
        )


def _result(remote: Remote, command: str, bundle: _Bundle, name: str) -> str:
    code, text = remote.ask(_RESULT, command, bundle.key, name)
    if code:
        raise RemoteError(f"{remote.host}: {FOLDER}/{bundle.key}/results/{name} cannot be read there")
    return text


def _failed(remote: Remote, code: int, said: str, by_hand: str) -> NoReturn:
    if code == 4:
        raise Busy(
            f"{remote.host}: a device run of this bundle is under way there already; one that lost its connection ends by "
            "itself within a minute. Then give the same command again"
        )
    why = {
        130: "was interrupted there; the same command continues",
        137: "was killed there, most often because memory ran out; end other programs there and give the same command again",
        143: "was ended there; the same command continues",
    }.get(code, f"failed (exit {code}); the run here is as it was. To look into it there: {by_hand}")
    raise RemoteError(f"{remote.host}: {_full(said) or f'device run {why}'}\n  {said}")


def _full(answer: str) -> str | None:
    """What to say where the far end has no more room."""
    if not _FULL.search(answer):
        return None
    return (
        f"its disk is full ({_last(answer)}); make room there (what lies in {FOLDER} may be deleted) and give the same command "
        "again, it continues"
    )


def _last(answer: str) -> str:
    """The last line that says anything, cut."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
