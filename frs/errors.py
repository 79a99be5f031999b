"""The errors that a user can do something about.

    FrsError
    ├── DataError         a data set, an annotation or an image
    │   └── SizeError         an image of another size than its annotations say
    ├── PackageError      a package that data or weights come in
    ├── WeightsError      a checkpoint or a weights file
    ├── TrainingError     a training that cannot go on
    ├── ExportError       a graph that cannot be written or read
    ├── EngineError       a TensorRT build or load
    ├── BundleError       an archive for a device
    ├── RemoteError       another machine that cannot be reached, or that did not do what it was asked to
    └── RuntimeMissing    a library or provider that this machine lacks

The message says what is wrong, where (file, key, value), and what to do next. Anything else that is raised is a
bug of ours.
"""

from __future__ import annotations


class FrsError(Exception):
    """Base of every error whose message is meant for the user, as it stands."""


class DataError(FrsError):
    """A data set, an annotation or an image that cannot be used."""


class SizeError(DataError):
    """An image that has another size than its annotations say."""


class PackageError(FrsError):
    """A package that cannot be downloaded, or whose content is not what it should be."""


class WeightsError(FrsError):
    """Weights that are missing, damaged, or made for another network."""


class TrainingError(FrsError):
    """A training that cannot start or go on, a loss that is not finite among them."""


class ExportError(FrsError):
    """A detector that cannot be exported, or an exported file that cannot be read."""


class EngineError(FrsError):
    """A TensorRT engine that cannot be built or loaded."""


class BundleError(FrsError):
    """An archive for a device that cannot be made, or that is not to be trusted."""


class RuntimeMissing(FrsError):
    """A library, provider or device that is not on this machine."""


class RemoteError(FrsError):
    """Another machine that cannot be reached, or that did not do what it was asked to."""
