"""What an update costs: tokens, floating-point operations, memory, and the share of the device that they used.

P parameters of the decoder without its embeddings and head. A token costs 2 P operations forward and, since the base
weights are frozen, 2 P backward (gradients of activations; an adapter's own are small beside them). Attention's part,
about 1 % at 128 tokens and width 4096, is left out, and so is what activation checkpointing computes again: utilization
counts useful operations.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dat_ray.config.training import TrainingConfig
from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.network import Network

# Dense bfloat16 operations per second, from NVIDIA's data sheets; a device's name holds the key.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def peak_flops(device: torch.device) -> float | None:
    """Operations per second of a known GPU; None for a CPU or an unknown one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_FLOPS.items() if key in name), None)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process held: on a GPU what PyTorch allocated there, else resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Passes:
    """Tokens through the decoder and response tokens through the head, one forward pass each.

    Attributes:
        forward: decoder tokens forward.
        backward: decoder tokens backward.
        head_forward: head rows forward.
        head_backward: head rows backward.
    """

    forward: int
    backward: int
    head_forward: int
    head_backward: int

    def flops(self, decoder_parameters: int, head_parameters: int) -> float:
        """Floating-point operations."""
        return 2.0 * decoder_parameters * (self.forward + self.backward) + 2.0 * head_parameters * (
            self.head_forward + self.head_backward
        )


def update_passes(harmful: Sequence[HarmfulRow], retain: Sequence[Encoded], cfg: TrainingConfig) -> Passes:
    """What one update runs for these rows, padding and shared leading tokens not counted."""

    def response(row: Encoded) -> int:
        low, high = row.response_span
        return high - low

    y = sum(len(row.harmful.ids) for row in harmful)
    y_head = sum(response(row.harmful) for row in harmful)
    pair = y + sum(len(row.refusal.ids) for row in harmful)
    pair_head = y_head + sum(response(row.refusal) for row in harmful)
    kept, kept_head = sum(len(row.ids) for row in retain), sum(map(response, retain))
    if cfg.retain_weight == 0:
        kept = kept_head = 0
    attacked, attacked_head = (pair, pair_head) if cfg.attack.objective == "joint" else (y, y_head)
    attack, last = cfg.attack.steps, int(cfg.attack.iterate == "best")
    steps = cfg.steps_per_attack
    reference, teacher = int(cfg.away == "ipo"), int(cfg.retain_loss != "ce")
    return Passes(
        forward=(attack + last) * attacked + steps * ((1 + reference) * pair + (1 + teacher) * kept),
        backward=attack * attacked + steps * (pair + kept),
        head_forward=(attack + last) * attacked_head + steps * ((1 + reference) * pair_head + (1 + teacher) * kept_head),
        head_backward=attack * attacked_head + steps * (pair_head + kept_head),
    )


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
