"""The pipeline's own errors; each carries the exit code that the command line answers with.

PipelineError           1
├── ConfigError         2   the configuration file or an override
├── GateFailed          3   a limit in `gates` was not met; the report is whole
├── Busy                4   another process is at the same run or artifact
├── NotLocked           1   --locked, and what is installed is not what the lock file says
├── StoreError          1   a store or run folder that cannot be read or written
└── StageError          1   a stage that broke its contract
    └── StageFailed         a stage that raised; its cause's code, or 1
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of the pipeline's errors; the message is one paragraph for the user: what, where, what next."""

    exit_code = 1


class ConfigError(PipelineError):
    """A configuration that cannot be used; the message lists every fault at once."""

    exit_code = 2


class GateFailed(PipelineError):
    """A limit of the `gates` section was not met."""

    exit_code = 3


class Busy(PipelineError):
    """Another process holds the run or the artifact."""

    exit_code = 4


class NotLocked(PipelineError):
    """What is installed differs from the lock file, or there is none."""


class StoreError(PipelineError):
    """The store or a run folder cannot be read or written."""


class StageError(PipelineError):
    """A stage did not keep its contract: a promised output is missing, an input is unknown."""


class StageFailed(StageError):
    """A stage raised; `__cause__` is what it raised."""

    def __init__(self, stage: str, cause: Exception) -> None:
        super().__init__(f"stage {stage}: {cause}")
        self.stage = stage
        self.exit_code = getattr(cause, "exit_code", 1)
