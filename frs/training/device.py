"""Which device computes, with how many threads, in which precision: decided once, and recorded."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from frs.distributed import local_world_size
from frs.errors import RuntimeMissing


@dataclass(frozen=True)
class Device:
    """kind: "cpu" or "cuda"; threads: of a CPU operator; bf16: whether bfloat16 is computed natively."""

    kind: str
    threads: int
    bf16: bool

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind)

    def place(self, module: nn.Module) -> None:
        """Move a module here, convolutions channels-last: the layout that CPU and GPU kernels like best."""
        module.to(self.torch_device)
        module.to(memory_format=torch.channels_last)

    def dtype(self, precision: str) -> torch.dtype | None:
        """The autocast type of "auto", "fp32" or "bf16"; None stands for no autocast."""
        wanted = precision == "bf16" or (precision == "auto" and self.bf16)
        return torch.bfloat16 if wanted else None


def device_kind(kind: str = "auto") -> str:
    """ "cpu" or "cuda", which is what "auto" stands for where torch sees a GPU.

    Raises RuntimeMissing when "cuda" is asked for and there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissing("runtime.device is cuda, but torch sees no GPU here; use auto or cpu")
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return kind


def resolve_device(kind: str = "auto", threads: int | None = None) -> Device:
    """Pick the device and set torch's thread count (results on a CPU depend on it); the ranks of a machine share its cores.

    Raises RuntimeMissing when "cuda" is asked for and there is none.
    """
    kind = device_kind(kind)
    threads = threads or max(1, len(os.sched_getaffinity(0)) // local_world_size())
    torch.set_num_threads(threads)
    if kind == "cuda":
        return Device(kind, threads, torch.cuda.is_bf16_supported())
    native = torch.cpu.get_capabilities()
    return Device(kind, threads, bool(native.get("avx512_bf16") or native.get("amx_bf16")))
