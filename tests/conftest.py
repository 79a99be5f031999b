"""What all tests share: one thread each, so that two workers do not fight over two cores."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A shell that starts this in the background has it ignored, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples each time, however busy the machine.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
os.environ.setdefault("OMP_NUM_THREADS", "1")
