"""Measures on a GPU what waits for one, and writes a record: every command, how long it took, what it said.

python benchmarks/gpu.py --out runs/gpu [--only NAME ...] [--minutes N]

Each is a process of its own with a time limit; one that fails or is not begun stands in the record as "not measured", with the
reason. What an earlier call measured is kept and not measured again, so that a machine that is lent for minutes at a time can
be used bit by bit. Without a GPU nothing is run, and the record says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, "-m"]
BENCH = [*PYTHON, "dat_ray.cli", "bench"]
EIGHT_BILLION = ["sampler", "--shape", "llada-8b", "--repeats", "2", "--json"]
EIGHT_BILLION_FP8 = ["fp8", "--shape", "llada-8b", "--rows", "48", "--repeats", "2", "--json"]
# Name -> minutes at most, and the command; what matters most comes first.
COMMANDS: dict[str, tuple[float, list[str]]] = {
    "vllm-sampler": (8, [*BENCH, "vllm-sampler", "--rows", "96", "--json"]),
    "vllm-sampler-float32": (
        8,
        [*BENCH, "vllm-sampler", "--rows", "48", "--json", "--set=sampler.dtype=float32", "--set=sampler.temperature=0.0"],
    ),
    "vllm-target": (8, [*BENCH, "vllm-target", "--rows", "256", "--json", "--set=target.max_new_tokens=128"]),
    "vllm-target-float32": (8, [*BENCH, "vllm-target", "--rows", "64", "--json", "--set=target.dtype=float32"]),
    "vllm-target-fp8": (8, [*BENCH, "vllm-target", "--rows", "256", "--json", "--set=target.quantization=fp8"]),
    "tests-gpu": (8, [*PYTHON, "pytest", "-q", "tests/gpu"]),
    "sampler-8b-64-steps": (9, [*BENCH, *EIGHT_BILLION, "--rows", "48"]),
    "sampler-8b-23-steps": (9, [*BENCH, *EIGHT_BILLION, "--rows", "48", "--steps", "23"]),
    "fp8-8b-64-steps": (9, [*BENCH, *EIGHT_BILLION_FP8, "--steps", "64"]),
    "fp8-8b-23-steps": (9, [*BENCH, *EIGHT_BILLION_FP8, "--steps", "23"]),
    "fp8-words": (5, [*BENCH, "fp8", "--rows", "96", "--repeats", "2", "--json"]),
    "attack-1b": (5, [*BENCH, "attack", "--preset", "1b", "--repeats", "2", "--json"]),
    "update-8b": (9, [*BENCH, "update", "--preset", "8b", "--repeats", "2", "--profile", "--json"]),
    "update-8b-compiled": (9, [*BENCH, "update", "--preset", "8b", "--repeats", "2", "--compile", "--profile", "--json"]),
}
NO_GPU = "PyTorch sees no GPU"
RECORD, PAGE = "record.json", "record.md"


@dataclass(frozen=True)
class Measured:
    """What became of one command.

    Attributes:
        name: of `COMMANDS`.
        command: as it was run.
        seconds: wall clock; 0 where it was not run.
        reason: why it was not measured; empty where it was.
        output: the result of a benchmark, whole, or the last lines.
    """

    name: str
    command: str
    seconds: float
    reason: str
    output: str


def gpu_name() -> str | None:
    """The first GPU's name; None where PyTorch sees none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measure(name: str, minutes: float, command: Sequence[str]) -> Measured:
    """Runs one command."""
    said = " ".join(["python", *command[1:]])
    began = time.monotonic()
    try:
        done = subprocess.run(list(command), cwd=REPOSITORY, capture_output=True, text=True, timeout=60 * minutes, check=False)
    except subprocess.TimeoutExpired:
        return Measured(name, said, time.monotonic() - began, f"no end within {minutes:g} minutes", "")
    took, output = time.monotonic() - began, _kept((done.stdout or done.stderr).strip())
    reason = "" if done.returncode == 0 else f"exit {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:300]}"
    if not reason and _lacks_figures(said, output):
        reason = "it ended well, and what it said is no JSON"
    return Measured(name, said, took, reason, output)


def _kept(said: str) -> str:
    """The object in JSON that stands at the end, of any length; else the last lines."""
    result = said[said.rfind("\n{") + 1 :]
    return "\n".join(said.splitlines()[-40:]) if _tree(result) is None else result


def _tree(output: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(output)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _lacks_figures(command: str, output: str) -> bool:
    return "--json" in command.split() and _tree(output) is None


def page(device: str | None, found: Sequence[Measured], day: str) -> str:
    """The record for people."""
    lines = [f"# What was measured on a GPU, {day}", "", f"Device: {device or 'none: ' + NO_GPU}.", ""]
    lines += ["| what | command | seconds | result |", "|---|---|---|---|"]
    for one in found:
        result = f"**not measured**: {one.reason}" if one.reason else _figures(one.output)
        lines.append(f"| {one.name} | `{one.command}` | {one.seconds:.0f} | {result.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _figures(output: str) -> str:
    tree = _tree(output)
    if tree is None:
        return (output.splitlines() or [""])[-1]
    numbers = {key: value for key, value in tree.items() if isinstance(value, (int, float)) and key != "repeats"}
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is wanted and not yet measured; 1 where something of it was not measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="of the record")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, metavar="NAME", help="of these: %(choices)s")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin nothing that may end later than after so many")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path, began, device = options.out / RECORD, time.monotonic(), gpu_name()
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name, (minutes, command) in COMMANDS.items():
        if options.only and name not in options.only:
            continue
        if name in kept and not kept[name]["reason"] and not _lacks_figures(kept[name]["command"], kept[name]["output"]):
            continue
        left = None if options.minutes is None else options.minutes - (time.monotonic() - began) / 60
        if device is None or (left is not None and left < minutes):
            reason = NO_GPU if device is None else f"{left:.0f} minutes were left, it may take {minutes:g}"
            one = Measured(name, " ".join(["python", *command[1:]]), 0.0, reason, "")
        else:
            print(f"{name}: at most {minutes:g} minutes", flush=True)
            one = measure(name, minutes, command)
        print(f"{name}: {'not measured: ' + one.reason if one.reason else 'measured'}", flush=True)
        kept[name] = asdict(one)
        path.write_text(json.dumps(kept, indent=1))
        found = [Measured(**kept[known]) for known in COMMANDS if known in kept]
        (options.out / PAGE).write_text(page(device, found, datetime.date.today().isoformat()))
    return int(any(one["reason"] for one in kept.values()))


if __name__ == "__main__":
    sys.exit(main())
