"""`dat bench scale`: the real generation plan on Ray, with engines that answer after stated times, at growing pools.

No model and no GPU: what is measured is how busy the plan keeps its actors, what it loses, what the driver needs, how it ends.
Stated times are divided by `--speed`, what Ray and the plan cost is not: at a high speed, or on a machine whose CPUs are all
taken (`machine_cpu`), their share is larger than on a cluster. `idle_share_at_speed_1` is the share at the stated times.

dat bench scale --json                                         # 1, 4, 16 and 64 samplers, then a resume; minutes
dat bench scale --actors 64 --judge-factor 1.5                 # a judge that is slower than the sampler
dat bench scale --actors 16 --spot 180                         # a node is lost every three minutes of stated time
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from dat_ray.bench.scale_run import PAPER_CARDS, PAPER_ROWS, Load, helpers, run_load, time_resume
from dat_ray.bench.simulated import StatedTime
from dat_ray.errors import InputError

# LLaDA-8B's shape on one H200 (benchmarks/2026-11-26-h200.md): 3.37 prompts a second.
SECONDS_A_ROW = 1 / 3.37
# Nobody has recorded how batches vary: round numbers.
SPREAD, STRAGGLERS, STRAGGLER_FACTOR = 0.2, 0.02, 4.0
# No rate of a target or judge on a GPU was recorded: pools that are faster than the sampler's.
TARGET_FACTOR, JUDGE_FACTOR = 0.5, 0.5
# Blocks that every sampler shall get: two wait in each one's queue, and the first ones go before the last sampler is up.
LEAST_BLOCKS = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""

    def number(option: str, default: float | None, text: str) -> None:
        parser.add_argument(option, type=float, default=default, metavar="X", help=f"{text} (default: %(default)s)")

    parser.add_argument("--actors", default="1,4,16,64", metavar="N,N", help="samplers of each run (default: %(default)s)")
    parser.add_argument("--rows-per-actor", type=int, default=1600, metavar="N", help="of a sampler (default: %(default)s)")
    parser.add_argument("--rows-per-shard", type=int, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="rows of a sampler's batch (default: %(default)s)"
    )
    number("--speed", 4.0, "by which stated times are divided")
    number("--seconds-per-row", SECONDS_A_ROW, "of a sampler, stated")
    number("--target-factor", TARGET_FACTOR, "a row's time in the target's pool, over that in the sampler's")
    number("--judge-factor", JUDGE_FACTOR, "the same of the judge's pool; above 1 the judge is the slowest")
    number("--spread", SPREAD, "standard deviation of the logarithm of a batch's seconds")
    number("--stragglers", STRAGGLERS, "share of batches that are stragglers")
    number("--straggler-factor", STRAGGLER_FACTOR, "how many times as long these take")
    parser.add_argument("--measured", metavar="FILE", help="measured seconds a row of the sampler, one a line, to draw from")
    number("--spot", None, "a node is lost every so many seconds, stated, and another one comes")
    parser.add_argument(
        "--resume-shards", type=int, default=5000, metavar="N", help="finished shards of a resume; 0: none (default: %(default)s)"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs every pool size in a process of its own, so that the driver's memory is that of one run; then the resume.

    Raises:
        InputError: an option that makes no run.
        DatError: Ray did not start, or generation failed.

    Returns:
        The keys of every `dat bench`, those of the largest pool; for each pool size, as `N_actors`, what `scale_run.run_load`
        returns, with `idle_share_at_speed_1` and `paper_hours`, an extrapolation; and `resume`.
    """
    loads = [_load(arguments, samplers) for samplers in _sizes(arguments)]
    runs = {f"{load.samplers}_actors": _apart(partial(run_load, load)) for load in loads}
    for load, run in zip(loads, runs.values(), strict=True):
        run["idle_share_at_speed_1"] = _idle_share(run, load)
    shards = arguments.resume_shards
    resume = _apart(partial(time_resume, shards, arguments.rows_per_shard)) if shards else None
    last = next(reversed(runs.values()))
    return {
        "bench": "scale",
        "device": platform.processor() or platform.machine(),
        "shape": f"{arguments.rows_per_actor} rows a sampler in shards of {arguments.rows_per_shard}, batches of "
        f"{arguments.batch_size}, {arguments.seconds_per_row:.3f} s a row at speed {arguments.speed:g}, pools of target and "
        f"judge {arguments.target_factor:g} and {arguments.judge_factor:g} times as long a row",
        "rows_per_s": last["rows"] / last["seconds"],
        "literal_rows_per_s": None,
        "ratio_to_literal": None,
        "mfu": None,
        "peak_bytes": int(last["driver_mib"]["peak"] * 2**20),
        "repeats": 1,
        **runs,
        "resume": resume,
        "paper_hours_are": f"extrapolated: {PAPER_ROWS} prompts on {PAPER_CARDS} cards that sample, steady state at the stated "
        "times and the utilization found here; the cards of target and judge, starts and the end come on top",
    }


def _sizes(arguments: argparse.Namespace) -> list[int]:
    try:
        sizes = [int(word) for word in arguments.actors.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise InputError("--actors", arguments.actors, "give whole numbers of at least 1, each once, as 1,4,16")
    return sizes


def _load(arguments: argparse.Namespace, samplers: int) -> Load:
    for name in ("speed", "seconds_per_row", "target_factor", "judge_factor", "straggler_factor", "spot"):
        value = getattr(arguments, name)
        if value is not None and not (0 < value < math.inf):
            raise InputError(f"--{name.replace('_', '-')}", value, "give a number above 0")
    if not 0 <= arguments.stragglers <= 1:
        raise InputError("--stragglers", arguments.stragglers, "give a share, from 0 to 1")
    if not 0 <= arguments.spread < math.inf:
        raise InputError("--spread", arguments.spread, "give a number of at least 0")
    for name in ("rows_per_shard", "batch_size"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}", getattr(arguments, name), "give at least 1")
    if arguments.resume_shards < 0:
        raise InputError("--resume-shards", arguments.resume_shards, "give at least 0")
    least = LEAST_BLOCKS * arguments.rows_per_shard
    if arguments.rows_per_actor < least:
        raise InputError("--rows-per-actor", arguments.rows_per_actor, f"give at least {least}: {LEAST_BLOCKS} shards a sampler")
    sampler = arguments.seconds_per_row / arguments.speed
    # A pool of fewer actors is as fast as stated where each of them is faster.
    one_helper = sampler * helpers(samplers) / samplers
    seconds = {"sampler": sampler, "target": one_helper * arguments.target_factor, "judge": one_helper * arguments.judge_factor}
    late = (arguments.spread, arguments.stragglers, arguments.straggler_factor)
    times = {role: StatedTime(mean, *late) for role, mean in seconds.items()}
    if arguments.measured is not None:
        measured = tuple(value / arguments.speed for value in _measured(arguments.measured))
        times["sampler"] = StatedTime(sampler, *late, measured)
    return Load(
        samplers,
        samplers * arguments.rows_per_actor,
        times,
        speed=arguments.speed,
        batch_size=arguments.batch_size,
        rows_per_shard=arguments.rows_per_shard,
        spot_seconds=None if arguments.spot is None else arguments.spot / arguments.speed,
    )


def _measured(path: str) -> list[float]:
    try:
        values = [float(line) for line in Path(path).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise InputError("--measured", path, f"give a readable file of numbers, one a line ({type(error).__name__})") from None
    if not values or not all(0 < value < math.inf for value in values):
        raise InputError("--measured", path, "give at least one number, all above 0")
    return values


def _apart(work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Calls it with an empty folder in a process of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="dat-bench-") as folder,
        # Ray prints what it says of lost nodes and busy actors: standard output is for the result.
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.dup2, (2, 1)) as pool,
    ):
        return pool.submit(work, Path(folder)).result()


def _idle_share(run: dict[str, Any], load: Load) -> float | None:
    """The share of the bottleneck's time that it waits between two batches of the stated length; an extrapolation."""
    idle = run["idle_s_a_batch"]
    if idle is None:
        return None
    rows = load.batch_size if run["bottleneck"] == "sampler" else load.rows_per_shard
    return float(idle / (idle + rows * load.times[run["bottleneck"]].seconds * load.speed))
