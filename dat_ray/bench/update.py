"""`dat bench update`: one whole update of training with random weights, and its memory against the arithmetic.

An update is what `training.step` takes: the attack, both responses under its perturbation, the retain term with the
adapter off as the teacher, and AdamW.

dat bench update --json                     # two CPU cores, seconds
dat bench update --preset 8b --json         # DAT's table 3 on Llama-3-8B's shape: one GPU of 80 GB
dat bench update --preset 8b --profile      # and what the device's time goes to, by kind of kernel
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import torch

from dat_ray.bench.attack import PRESETS as ATTACKS
from dat_ray.bench.attack import Preset, build
from dat_ray.bench.kernels import profiled
from dat_ray.config.training import AttackConfig, RetainConfig, TrainingConfig
from dat_ray.training.memory import LlamaShape, update_bytes
from dat_ray.training.network import Network
from dat_ray.training.step import FineTuning, UpdateRows, make_trainer

# The rows of a preset are harmful ones; as many retain rows come with them.
PRESETS = {
    "cpu": replace(ATTACKS["cpu"], rows=2, steps=2),
    # Meta-Llama-3-8B's public configuration; batch, length and steps of DAT's table 3, CAT's adapter.
    "8b": Preset(32, 4096, 32, 14_336, 128_256, False, 0.02, 64, 4, 128, 64, 20, torch.bfloat16),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="cpu: seconds on two cores; 8b: for a GPU")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed updates (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="training.compile")
    parser.add_argument("--checkpointing", action="store_true", help="training.activation_checkpointing")
    parser.add_argument("--profile", action="store_true", help="one more update, with the device's time by kind of kernel")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark."""
    return bench_update(arguments.preset, arguments.repeats, arguments.compile, arguments.checkpointing, arguments.profile)


def bench_update(
    preset_name: str, repeats: int, compiled: bool = False, checkpointing: bool = False, kernels: bool = False
) -> dict[str, Any]:
    """Takes updates, the first one untimed.

    Args:
        preset_name: a key of `PRESETS`.
        repeats: timed updates.
        compiled, checkpointing: as in the recipe's `training`.
        kernels: take one more update under the profiler, which no other figure is of.

    Returns:
        Medians over the timed updates: harmful rows and tokens (of forward passes) per second, seconds by part, model FLOP
        utilization; peak memory in bytes (on a GPU) and what `training.memory` predicts for it;
        `profile` of `dat_ray.bench.kernels`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[preset_name]
    network, harmful = build(preset, device, "inductor" if compiled else None)
    if checkpointing:
        network = Network(network.model, checkpointing=True)
    retain = [row.refusal for row in harmful]
    cfg = TrainingConfig(
        updates=1000,
        harmful_rows=len(harmful),
        retain_rows=len(retain),
        retain=RetainConfig(path="random"),
        max_tokens=preset.tokens,
        attack=AttackConfig(steps=preset.steps),
    )
    rows = UpdateRows(harmful, retain, len(harmful), sum(high - low for low, high in (row.response_span for row in retain)))
    objective, trainer = FineTuning(network, cfg, lambda update: rows), make_trainer(network, cfg, updates=1000)
    taken = [objective.update(trainer, update) for update in range(repeats + 1)][1:]
    seconds = statistics.median(update["seconds"] for update in taken)
    costs = [update["cost"] for update in taken]
    on_gpu = device.type == "cuda"
    options = ", compiled" * compiled + ", activation checkpointing" * checkpointing
    return {
        "bench": "update",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "shape": f"{preset_name}: {preset.layers} layers, width {preset.width}, vocabulary {preset.vocabulary}, adapter of rank "
        f"{preset.rank}, {preset.rows} harmful and {len(retain)} retain rows of {preset.tokens} tokens, {preset.steps} attack "
        f"steps, {str(preset.dtype).removeprefix('torch.')}{options}",
        "rows_per_s": preset.rows / seconds,
        "literal_rows_per_s": None,
        "ratio_to_literal": None,
        "mfu": statistics.median(cost["utilization"] for cost in costs) if costs[0]["utilization"] is not None else None,
        "peak_bytes": max(cost["peak_bytes"] for cost in costs) if on_gpu else None,
        "repeats": repeats,
        "seconds": seconds,
        "seconds_by_part": {
            part: statistics.median(update["seconds_by_part"][part] for update in taken) for part in taken[0]["seconds_by_part"]
        },
        "tokens_per_s": statistics.median(cost["tokens_per_s"] for cost in costs),
        "predicted_bytes": predicted(preset, checkpointing),
        "profile": profiled(lambda: objective.update(trainer, repeats + 1), device) if kernels else None,
    }


def predicted(preset: Preset, checkpointing: bool) -> dict[str, int]:
    """`training.memory`'s arithmetic for a preset: both responses of the harmful rows are in one backward pass."""
    keys = preset.width // preset.heads * max(preset.heads // 4, 1)
    shape = LlamaShape(preset.layers, preset.width, preset.hidden, keys, preset.vocabulary, preset.tied)
    return update_bytes(
        shape,
        rank=preset.rank,
        rows=2 * preset.rows,
        tokens=preset.tokens,
        response=preset.response,
        checkpointing=checkpointing,
    )
