"""The folder of a device's results: of one bundle, one process at a time, and every finished step kept until all are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frs.edge.bundle import Bundle, open_bundle, read_bundle, sha256_of
from frs.errors import BundleError
from pipeline.errors import Busy, ConfigError
from pipeline.files import clear_temporary, locked, to_json_text, write_atomic

RESULT = "device.json"


@dataclass(frozen=True)
class Work:
    """results: what the user named. folder: `.work` in it. bundle_sha256: of the archive; bundle: as it was extracted."""

    results: Path
    folder: Path
    bundle_sha256: str
    bundle: Bundle

    @property
    def engines(self) -> Path:
        """Where plans are put, which the user takes away."""
        return self.results / "engines"

    def step(
        self, name: str, facts: Mapping[str, Any], do: Callable[[], Any], good: Callable[[Any], bool] = lambda _: True
    ) -> Any:
        """What `do` returned, JSON-ready: now, or in an earlier call with the same facts. What raises is not kept.

        name: also of a file. good: whether a result may be taken in a later call, and in that call still.
        """
        path = self.folder / f"{name}.json"
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["facts"] == key and good(kept["result"]):
                return kept["result"]
        except (OSError, ValueError, LookupError, TypeError):  # not done, or what a full disk left
            pass
        result = do()
        if good(result):
            write_atomic(path, to_json_text({"facts": key, "result": result}))
        return result

    def forget(self, name: str) -> None:
        """A later call does the step anew."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)


@contextmanager
def opened(archive: Path, results: Path) -> Iterator[Work]:
    """The results folder with the bundle extracted in it, which is deleted again when all went well.

    Raises BundleError, Busy, and ConfigError where the folder holds another bundle's results.
    """
    sha256 = sha256_of(archive)
    folder = results / ".work"

    def busy(holder: int | None) -> None:
        process = "another process" if holder is None else f"process {holder}"
        raise Busy(
            f"{results}: {process} measures into this folder already; wait until it ends, or name another with -o."
        )

    before = _bundle_before(results, folder)
    if before not in (None, sha256):
        raise ConfigError(
            f"{results} holds the results of another bundle than {archive}; name another folder with -o, or delete it."
        )
    with locked(folder / "lock", busy=busy):
        clear_temporary(folder)
        clear_temporary(results)
        unpacked = folder / "bundle"
        if before is None and unpacked.exists():
            shutil.rmtree(unpacked)  # of a call that was killed before it said of which archive
        bundle = _unpacked(archive, unpacked)
        write_atomic(folder / "bundle.json", to_json_text({"bundle_sha256": sha256}))
        yield Work(results, folder, sha256, bundle)
        shutil.rmtree(unpacked)  # nobody looks for the images among the results


def _bundle_before(results: Path, folder: Path) -> str | None:
    for path in (folder / "bundle.json", results / RESULT):
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["bundle_sha256"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError):
            raise ConfigError(
                f"{path} is not what `frs-pipeline device run` writes; name another folder with -o, or delete this one."
            ) from None
    return None


def _unpacked(archive: Path, folder: Path) -> Bundle:
    if folder.is_dir():
        try:
            return read_bundle(folder)
        except BundleError:  # a disk that lost what it had
            shutil.rmtree(folder)
    return open_bundle(archive, folder)
