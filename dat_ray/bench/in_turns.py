"""Several forms of one piece of work, timed in turns in one run, and the room that each takes where a GPU is shared."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dat_ray.config.cluster import Pool

Result = TypeVar("Result")

# Of a GPU's memory, for each of two engines of vLLM that a third form stands beside.
SHARED_MEMORY = 0.3


def add_options(parser: argparse.ArgumentParser, section: str, rows: int) -> None:
    """The options of a benchmark of one engine.

    Args:
        parser: of the benchmark.
        section: of a recipe, that of the engine.
        rows: of a timed run, unless others are asked for.
    """
    parser.add_argument("--recipe", default="demo", help=f"whose section `{section}` is used (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the recipe")
    parser.add_argument("--rows", type=int, default=rows, metavar="N", help="of one timed run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of each engine on a CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each form (default: %(default)s)")


@dataclass(frozen=True)
class Turns(Generic[Result]):
    """What the forms gave, and how long they took.

    Attributes:
        results: of each form's first run, which is not timed.
        seconds: form -> one a repeat.
    """

    results: dict[str, Result]
    seconds: dict[str, list[float]]

    def median(self, form: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[form])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times the one takes what the other takes, within each repeat; the median of these."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(other / own for other, own in pairs)


def take_turns(forms: Mapping[str, Callable[[], Result]], repeats: int) -> Turns[Result]:
    """Runs every form once, and then `repeats` times with the clock, each going first in turn: a drift of speed favors none."""
    names = list(forms)
    results = {name: forms[name]() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in [*names[first:], *names[:first]]:
            began = time.perf_counter()
            forms[name]()
            seconds[name].append(time.perf_counter() - began)
    return Turns(results, seconds)


def pool_of_one(threads: int) -> Pool:
    """One actor; on a GPU machine with a share of the GPU, without which Ray hides it."""
    return Pool(num_cpus=1, num_gpus=SHARED_MEMORY if torch.cuda.is_available() else 0, threads=threads)


def memory_share() -> dict[str, float]:
    """Fields of an engine's section on this machine: on a GPU the share of its memory."""
    return {"gpu_memory_utilization": SHARED_MEMORY} if torch.cuda.is_available() else {}


def device_name(threads: int) -> str:
    """The GPU, or the CPU with its threads."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {threads} threads"
