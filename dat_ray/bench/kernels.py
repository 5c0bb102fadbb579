"""Where a device's time goes: its kernels (on a CPU, PyTorch's operators) added up by kind.

Kernels inside a CUDA graph belong to no operator, so they are told apart by their names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.autograd.profiler_util import DeviceType
from torch.profiler import ProfilerActivity, profile

# The first kind of which a word is in the name, in small letters. Kernels of NVIDIA's libraries name their number format.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("compiled", ("triton",)),  # fused: its name lists operators of every kind
    ("attention", ("flash", "fmha", "attention")),
    ("products in float32", ("tf32", "sgemm", "f32f32_f32f32", "nvjet_ss")),
    ("products", ("gemm", "gemv", "nvjet", "cutlass", "xmma", "splitk", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")),
    ("copies", ("memcpy", "memset", "copy", "convert", "catarray", "::cat", "index", "gather", "scatter", "fill", "zero")),
    ("between GPUs", ("nccl",)),
    ("sums and norms", ("reduce", "softmax", "norm", "::sum", "::mean", "logsumexp")),
    ("elementwise", ("elementwise", "foreach", "multi_tensor", "aten::")),
)
OTHER = "other"
SHOWN = 15


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel.

    Attributes:
        name: as the profiler has it.
        calls: how many.
        seconds: of the device, of all of them, without kernels that they start.
    """

    name: str
    calls: int
    seconds: float


def kind_of(name: str) -> str:
    """One of `KINDS`, or OTHER."""
    small = name.lower()
    return next((kind for kind, words in KINDS if any(word in small for word in words)), OTHER)


def by_kind(kernels: Iterable[Kernel]) -> dict[str, dict[str, float]]:
    """Kind -> calls, seconds and share of all seconds, the longest first."""
    known = list(kernels)
    total = sum(kernel.seconds for kernel in known)
    found: dict[str, dict[str, float]] = {}
    for kernel in known:
        one = found.setdefault(kind_of(kernel.name), {"calls": 0, "seconds": 0.0})
        one["calls"] += kernel.calls
        one["seconds"] += kernel.seconds
    for one in found.values():
        one["share"] = one["seconds"] / total if total else 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1]["seconds"]))


def profiled(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Runs work once under PyTorch's profiler, which slows the host down and not a GPU.

    Args:
        work: ends when the device has done it.
        device: whose kernels count.

    Returns:
        Seconds of the clock, seconds in which the device had a kernel (one after another), `kinds` of `by_kind` and the longest
        SHOWN kernels.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        work()
        wall = time.perf_counter() - began
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = [
        Kernel(event.key, event.count, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
        if event.device_type == wanted
    ]
    kernels.sort(key=lambda kernel: -kernel.seconds)
    return {
        "wall_seconds": wall,
        "busy_seconds": sum(kernel.seconds for kernel in kernels),
        "kinds": by_kind(kernels),
        "longest": [asdict(kernel) for kernel in kernels[:SHOWN]],
    }
