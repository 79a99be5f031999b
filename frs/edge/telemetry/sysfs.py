"""Small files of the kernel's, which come and go and may refuse to be read."""

from __future__ import annotations

from pathlib import Path


def read(path: Path) -> str | None:
    """The text without white space and NUL at its ends; None where the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:  # a sensor that is powered down answers EAGAIN or EIO
        return None


def read_int(path: Path) -> int | None:
    text = read(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether the device tree says that this is a Tegra (also inside a container)."""
    return "nvidia,tegra" in (read(root / "proc/device-tree/compatible") or "")
