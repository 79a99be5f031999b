"""What the work is done with: the installed packages, the image they are in, and the lock file they should be those of."""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from importlib import metadata
from pathlib import Path

from pipeline.errors import NotLocked

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
_OURS = "frs-pipeline"
_INSTALLERS = {"pip", "setuptools"}
"""A new virtual environment may have them, whatever the lock says."""
_SHOWN = 8


def image() -> str | None:
    """The container image by name and digest, as whoever starts it says in FRS_IMAGE: from inside nobody can know."""
    return os.environ.get("FRS_IMAGE") or None


@functools.cache
def packages() -> dict[str, str]:
    """Name -> version of all that is installed beside this package. What a base image brings for its own Python,
    such as TensorRT, is not among them; `pipeline.manifest.versions` names it with the stages that used it."""
    folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    named = [each for each in metadata.distributions(path=folders) if each.metadata and each.metadata["Name"]]
    return dict(sorted((_plain(each.metadata["Name"]), each.version) for each in named))


def lock_file() -> Path:
    """FRS_LOCK, which the images set; in a checkout locks/dev.txt, which `make` installs. Raises NotLocked where there is
    none."""
    given = os.environ.get("FRS_LOCK")
    path = Path(given) if given else Path(__file__).parent.parent / "locks" / "dev.txt"
    if not path.is_file():
        origin = f"FRS_LOCK={given}: there is no such file" if given else "--locked finds no lock file here"
        raise NotLocked(f"{origin}; set FRS_LOCK to the file that was installed from, e.g. locks/train.txt.")
    return path


def check_locked(lock: Path) -> None:
    """Raises NotLocked, naming what differs, unless all packages that the lock file pins, and no others, are installed in the
    pinned versions."""
    pinned = read_lock(lock)
    there = {name: version for name, version in packages().items() if name != _OURS}
    differing = [
        f"{name} {there.get(name, 'is missing')}, locked {version}"
        for name, version in pinned.items()
        if there.get(name) != version
    ]
    differing += [f"{name} {there[name]}, not locked" for name in there if name not in pinned.keys() | _INSTALLERS]
    if differing:
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise NotLocked(
            f"what is installed is not what {lock} says: {'; '.join(differing[:_SHOWN])}{more}. In a new virtual "
            f"environment, pip install --require-hashes -r {lock} brings that; or leave out --locked."
        )


def read_lock(lock: Path) -> dict[str, str]:
    """Name -> version. Raises NotLocked where it pins nothing."""
    lines = lock.read_text(encoding="utf-8", errors="replace").splitlines()
    pins = {_plain(match[1]): match[2] for match in map(_PIN.match, lines) if match}
    if not pins:
        raise NotLocked(f"{lock} pins no package; it should have lines such as numpy==2.4.1, as make lock writes them.")
    return pins


def _plain(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
