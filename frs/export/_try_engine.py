"""The process that runs a plan once, to see that it runs: `python -m frs.export._try_engine plan parent`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from frs.edge.image import PADDING
from frs.edge.trt import TensorRTSession
from frs.errors import FrsError
from frs.interrupts import end_with


def main(plan: Path) -> None:
    with TensorRTSession(plan) as session:
        least, _ = session.batches
        session.run_raw(np.full((least, 3, session.info.height, session.info.width), PADDING, np.uint8))


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    try:
        main(Path(sys.argv[1]))
    except FrsError as error:
        sys.exit(str(error))
