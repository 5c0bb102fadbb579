"""The most memory that a block of code held beyond what was there before it."""

from __future__ import annotations

import ctypes
from types import TracebackType

import torch


class PeakMemory:
    """Measures the block it wraps; `bytes` holds the result afterwards.

    On a GPU what PyTorch allocated. On a CPU the process's peak of resident memory, which Linux keeps and lets a process
    set back; elsewhere None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
            return self
        try:
            # Freed memory that the C library keeps would hide what the block takes.
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._before = _resident("VmRSS")
        except (OSError, AttributeError):
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is None:
            return
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _resident("VmHWM")
        self.bytes = peak - self._before


def _resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))
