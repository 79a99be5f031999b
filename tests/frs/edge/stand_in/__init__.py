"""What stands in for a GPU, so that a session's handling of it can be tested on a CPU: where the bytes travel, in which
order, what is waited for, what is given back, and what becomes of a call that fails. Nothing else can be shown this way: how
CUDA and TensorRT behave, only a GPU can say."""

from tests.frs.edge.stand_in.cuda import Cuda
from tests.frs.edge.stand_in.tensorrt import Behaviour, install, tensorrt

__all__ = ["Behaviour", "Cuda", "install", "tensorrt"]
