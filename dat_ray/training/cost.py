"""What an update costs: tokens, floating-point operations, memory, and the share of the device that they used."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from typing import Any

import torch

from dat_ray.config.training import TrainingConfig
from dat_ray.devices import find_device
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network
from dat_ray.training.passes import Passes, UpdateTokens, count_passes


def peak_flops(device: torch.device) -> float | None:
    """Operations per second of a known GPU; None for a CPU or an unknown one."""
    if device.type != "cuda":
        return None
    known = find_device(torch.cuda.get_device_name(device))
    return None if known is None else known.flops


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process held: on a GPU what PyTorch allocated there, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def update_passes(harmful: Sequence[HarmfulRow], retain: Sequence[Encoded], cfg: TrainingConfig) -> Passes:
    """What one update runs for these rows, padding and shared leading tokens not counted."""

    def response(row: Encoded) -> int:
        low, high = row.response_span
        return high - low

    tokens = UpdateTokens(
        harmful=sum(len(row.harmful.ids) for row in harmful),
        harmful_head=sum(response(row.harmful) for row in harmful),
        refusal=sum(len(row.refusal.ids) for row in harmful),
        refusal_head=sum(response(row.refusal) for row in harmful),
        retain=sum(len(row.ids) for row in retain),
        retain_head=sum(map(response, retain)),
    )
    return count_passes(tokens, cfg)


def update_cost(
    network: Network, harmful: Sequence[HarmfulRow], retain: Sequence[Encoded], cfg: TrainingConfig, seconds: float
) -> dict[str, Any]:
    """This worker's tokens per second (forward passes), peak memory in bytes, and model FLOP utilization.

    `utilization` is None where the device's peak is not known.
    """
    passes, peak = update_passes(harmful, retain, cfg), peak_flops(network.device)
    flops = passes.flops(*network.parameter_counts())
    return {
        "tokens_per_s": passes.forward / seconds,
        "peak_bytes": peak_bytes(network.device),
        "utilization": None if peak is None else flops / seconds / peak,
    }
