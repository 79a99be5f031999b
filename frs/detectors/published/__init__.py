"""Detectors that others have trained: torchvision's and mmdetection's checkpoints, tensor by tensor.

Family and size follow from the names and shapes of the tensors. What those cannot tell (`Facts`) is taken from the caller,
else from the file, else it is the library's usual value; each choice is logged. Nothing is skipped: a tensor that has no
place in the detector, but for constants that are named, is an error.
"""

from frs.detectors.published.classes import with_classes
from frs.detectors.published.mmdet import from_mmdet
from frs.detectors.published.reading import Facts
from frs.detectors.published.torchvision import NAMES, from_torchvision

__all__ = ["NAMES", "Facts", "from_mmdet", "from_torchvision", "with_classes"]
