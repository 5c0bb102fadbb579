"""`dat bench NAME`: finds a benchmark's module, reads its options, prints what it measured.

A module of this room that is listed in `BENCHES` has `configure(parser)`, which adds its options, and `measure(arguments)`,
which returns a dict with the keys `KEYS` and further ones of its own; null where a number cannot be had.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dat_ray.errors import InputError

BENCHES = {
    "attack": "the inner attack of training against CAT's public code",
    "fp8": "the torch sampler with 8-bit layers against the plain one: speed, and how many of its words turn",
    "sampler": "in-painting against a literal form of the reference law",
    "scale": "the generation plan on Ray with engines of stated times: utilization of 1 to 64 samplers, rows, memory, resume",
    "update": "one whole update of training: time by part, utilization, memory against its arithmetic",
    "vllm-sampler": "vLLM's sampler in its actor against the bare engine and the torch sampler",
    "vllm-target": "vLLM's target in its actor against bare vLLM and the torch target",
    "writer": "the data path, without models",
}
# Read by other programs (keep them); medians.
KEYS = ("bench", "device", "shape", "rows_per_s", "literal_rows_per_s", "ratio_to_literal", "mfu", "peak_bytes", "repeats")

# Options of any benchmark that count something.
COUNTS = ("repeats", "rows", "rows_per_shard", "steps", "threads")


def run_bench(name: str, options: Sequence[str]) -> int:
    """Runs a benchmark and prints its result, as lines or with `--json` for programs.

    Args:
        name: a key of `BENCHES`.
        options: of the benchmark's own.

    Raises:
        InputError: a count of nothing, or what the benchmark says.
    """
    module = import_module(f"dat_ray.bench.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"dat bench {name}", description=(module.__doc__ or "").split("\n\n")[0])
    module.configure(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(list(options))
    for option in COUNTS:
        value = getattr(arguments, option, None)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')}", value, "give at least 1")
    result: dict[str, Any] = module.measure(arguments)
    assert set(KEYS) <= set(result), sorted(set(KEYS) - set(result))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    for key, value in result.items():
        print(f"{key:22} {_shown(value)}")
    return 0


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return str(value)
