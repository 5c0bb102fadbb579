"""What devices can do by their data sheets, and a machine's processor by a record.

| device | dense bfloat16, TFLOP/s | memory, GB/s | memory, GB | source |
|---|---|---|---|---|
| H100 SXM | 989 | 3,350 | 80 | NVIDIA H100 data sheet (1,979 with sparsity) |
| H100 PCIe | 756 | 2,000 | 80 | the same |
| H200 | 989 | 4,800 | 141 | NVIDIA H200 data sheet |
| A100 80 GB | 312 | 2,039 | 80 | NVIDIA A100 data sheet, SXM |
| L40S | 362 | 864 | 48 | NVIDIA L40S data sheet (733 with sparsity) |
| RTX 4090 | 165 | 1,008 | 24 | NVIDIA Ada architecture paper, sums in float32 |

A CPU core does 103 GFLOP/s in float32 products with AVX-512 (206 on two cores, benchmarks/2026-11-25-cpu.md) and half of that
with AVX2, whose registers are half as wide.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CPU = "cpu"
AVX512_CORE_FLOPS, AVX2_CORE_FLOPS = 103e9, 51.5e9
# Of a machine's memory, all cores together: not recorded, two channels of DDR4.
CPU_BANDWIDTH = 40e9
PROCESSOR, NVIDIA_GPUS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")
# What Linux calls them, on x86 and on Arm.
BFLOAT16_WORDS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Device:
    """A GPU, or the cores of a machine.

    Attributes:
        name: as `dat plan --device` takes it.
        title: for people; a part of what the driver calls a GPU.
        flops: dense operations a second, bfloat16 on a GPU and float32 on a CPU.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        cores: of a CPU; 0 for a GPU.
    """

    name: str
    title: str
    flops: float
    bandwidth: float
    memory: float
    cores: int = 0

    @property
    def is_gpu(self) -> bool:
        """Whether it is one."""
        return self.cores == 0


# The first one whose title is in a GPU's name is meant.
GPUS = {
    device.name: device
    for device in (
        Device("h200", "H200", 989e12, 4.8e12, 141e9),
        Device("h100-pcie", "H100 PCIe", 756e12, 2.0e12, 80e9),
        Device("h100", "H100", 989e12, 3.35e12, 80e9),
        Device("a100-80", "A100", 312e12, 2.039e12, 80e9),
        Device("l40s", "L40S", 362e12, 864e9, 48e9),
        Device("rtx4090", "RTX 4090", 165.2e12, 1.008e12, 24e9),
    )
}


def find_device(name: str) -> Device | None:
    """The GPU of the table that a driver calls `name`."""
    return next((device for device in GPUS.values() if device.title in name), None)


def processor(cores: int, memory: float, *, avx512: bool) -> Device:
    """A machine without a GPU.

    Args:
        cores: that the process may use.
        memory: bytes.
        avx512: whether the cores have it; else AVX2 is taken for granted.
    """
    flops = cores * (AVX512_CORE_FLOPS if avx512 else AVX2_CORE_FLOPS)
    title = f"{cores} cores with {'AVX-512' if avx512 else 'AVX2'}"
    return Device(CPU, title, flops, CPU_BANDWIDTH, memory, cores)


def this_processor() -> Device:
    """The cores and the memory of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import psutil

    return processor(cores, float(psutil.virtual_memory().total), avx512="avx512f" in _processor_words())


def multiplies_bfloat16() -> bool:
    """Whether this machine has a GPU, or a processor with products of bfloat16: others emulate them, slower than float32."""
    return NVIDIA_GPUS.is_dir() or not BFLOAT16_WORDS.isdisjoint(_processor_words())


def _processor_words() -> frozenset[str]:
    try:
        return frozenset(PROCESSOR.read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()
