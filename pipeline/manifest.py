"""`runs/<name>/manifest.json`: what a run is made of, replaced atomically after each stage."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import StoreError
from pipeline.files import to_json_text, write_atomic
from pipeline.hashing import sealed, unsealed
from pipeline.store import Entry

SCHEMA = 2
FILE = "manifest.json"

_LIBRARIES = (
    "numpy", "PIL", "torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycocotools",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One stage of a run.

    path: of its entry, relative to the runs folder. reused: the work was not done by the latest run. published: plain
    name in the run folder -> sha256 of the copy that was put there.
    """

    entry: Entry
    path: str
    reused: bool
    published: dict[str, str]


@dataclass
class Manifest:
    """A run.

    running: the partial folder, relative to the runs folder, of the attempt that is under way or was interrupted.
    image, packages: what the latest call of `run` worked in (`pipeline/environment.py`); an entry's `versions` are those
    of the call that made it.
    """

    name: str
    stages: dict[str, Record] = field(default_factory=dict)
    running: str | None = None
    image: str | None = None
    packages: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, run_dir: Path) -> Manifest | None:
        """The manifest of a run folder, None where it has none. Raises StoreError for a damaged or newer one."""
        path = run_dir / FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise StoreError(
                    f"{path} has schema {document['schema']}, this frs-pipeline ({__version__}) reads {SCHEMA}; use "
                    "the version that wrote it, or another --runs-dir."
                )
            document = unsealed(document)
            stages = {name: _record(item, run_dir.parent) for name, item in document["stages"].items()}
            return cls(
                document["name"], stages, document["running"], document.get("image"), document.get("packages", {})
            )
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise StoreError(f"{run_dir} is a file where the run's folder should be; move it away.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} is damaged ({type(error).__name__}: {error}); delete it and run again: what is intact in the "
                "store is reused."
            ) from None

    def save(self, run_dir: Path) -> None:
        """Replace the file."""
        write_atomic(run_dir / FILE, to_json_text(sealed(self.to_json())))

    def to_json(self) -> dict[str, Any]:
        stages = {
            name: {
                "path": record.path,
                "reused": record.reused,
                "published": record.published,
                **record.entry.to_json(),
            }
            for name, record in self.stages.items()
        }
        return {
            "schema": SCHEMA,
            "name": self.name,
            "running": self.running,
            "image": self.image,
            "packages": self.packages,
            "stages": stages,
        }


def _record(item: dict[str, Any], runs_dir: Path) -> Record:
    entry = Entry.from_json(item, runs_dir / item["path"])
    return Record(entry, item["path"], item["reused"], item["published"])


def versions() -> dict[str, str]:
    """Of Python, this package, and the libraries that have been imported by now."""
    loaded = {name: getattr(sys.modules[name], "__version__", None) for name in _LIBRARIES if name in sys.modules}
    return {
        "python": platform.python_version(),
        "frs-pipeline": __version__,
        **{name: str(version) for name, version in loaded.items() if version},
    }


@functools.cache
def commit() -> str | None:
    """The git commit of this package, "-dirty" behind it where files differ. Where it is not a checkout, what FRS_COMMIT says,
    which the images set, or None."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    tracked = [*git, "ls-files", "--error-unmatch", here.name]  # a virtual environment may lie in a foreign repository
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FRS_COMMIT") or None


def host() -> str:
    return platform.node()
