"""One exported file on the bundled images, in a process of its own: a runtime that crashes takes nothing else with it.

    python -m stages.device.score REQUEST, a JSON file: {"artifact", "bundle", "result", "parent"}

It prints the number of images that are done, a line each batch, and writes COCO's result rows to `result`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frs.errors import ExportError, FrsError

if TYPE_CHECKING:
    from frs.evaluation import Row

BATCH = 8
"""Images at a time where the graph leaves the batch open."""


def score(artifact: Path, bundle: Path, progress: Callable[[int], None]) -> list[Row]:
    """COCO's result rows of an artifact on the images of an extracted bundle.

    progress: called with the number of images that are done. Raises ExportError with what the process said in the end.
    """
    source = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked, answered = folder / "request.json", folder / "rows.json"
        paths = {"artifact": artifact, "bundle": bundle, "result": answered}
        request = {**{key: str(path.resolve()) for key, path in paths.items()}, "parent": os.getpid()}
        asked.write_text(json.dumps(request), encoding="utf-8")
        with (folder / "stderr").open("w+b") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "stages.device.score", str(asked)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,  # so that nothing in the user's folder is imported
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))},
                text=True,
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    progress(int(line))
                status = process.wait()
            finally:
                process.kill()
                process.wait()
            if status:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                ended = f"the process that scores it ended with status {status}"
                raise ExportError(lines[-1][:500] if lines and status == 1 else f"{artifact.name}: {ended}")
        rows: list[Row] = json.loads(answered.read_text(encoding="utf-8"))
        return rows


def main(request: Path, answers: Any) -> None:
    from frs.data import evaluation_batches, read_coco
    from frs.edge.bundle import ANNOTATIONS
    from frs.edge.sessions import open_session
    from frs.evaluation import predict_dataset
    from frs.interrupts import end_with
    from stages.common import batch_of

    asked = json.loads(request.read_text(encoding="utf-8"))
    end_with(asked["parent"])
    bundle = Path(asked["bundle"])
    data = read_coco(bundle / ANNOTATIONS, bundle / "images")
    session = open_session(Path(asked["artifact"]))

    def batches() -> Iterator[Any]:
        done = 0
        for item in evaluation_batches(data, session.info.height, session.info.width, batch_of(session, BATCH)):
            yield item
            done += len(item[2])
            print(done, file=answers, flush=True)

    rows = predict_dataset(session, batches())
    Path(asked["result"]).write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    try:
        main(Path(sys.argv[1]), channel)
    except FrsError as error:
        sys.exit(str(error))
