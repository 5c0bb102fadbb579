"""How fast rows go through the data path: expand, write, resume scan, manifest; and how the scan grows with the folder.

No model and no Ray.

dat bench writer --json
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.schemas import BEHAVIORS, CANDIDATES
from dat_ray.data.shards import join, write_shard
from dat_ray.errors import InputError
from dat_ray.generation.expand import expand
from dat_ray.generation.finish import CHECKPOINT, forget_lost_rows, publish, take_inventory

# Processes that write shards at once, as the plan's writers do.
WRITERS = 2
TARGETS = 100
ROWS, ROWS_PER_SHARD = 51_200, 256
# Characters of a prompt and of a completion: those of 64 and 256 tokens.
PROMPT, COMPLETION = 280, 1100


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--rows", type=int, default=ROWS, help=f"rows of one round, a multiple of {TARGETS} (default: %(default)s)"
    )
    parser.add_argument(
        "--rows-per-shard", type=int, default=ROWS_PER_SHARD, help="generation.rows_per_block (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken (default: %(default)s)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs it with the options of the command line."""
    return bench_writer(arguments.rows, arguments.rows_per_shard, arguments.repeats)


def bench_writer(rows: int, rows_per_shard: int, repeats: int) -> dict[str, Any]:
    """Times the data path, in the folder for temporary files.

    Args:
        rows: rows of one round; `TARGETS` targets share them.
        rows_per_shard: `generation.rows_per_block`.
        repeats: runs of which the median is taken.

    Raises:
        InputError: the rows cannot be shared evenly.

    Returns:
        The keys of every `dat bench`, and `seconds` of each part, all medians; `scan_cpu_ms`, shards -> processor time of
        a resume scan of so many, and `scan_growth`, the power of the number of shards with which it grows (1: linear).
        There is no reference law, no model and no device memory here, so that what speaks of them is null.
    """
    recipe, behaviors = _inputs(rows)
    answered, shards = made_up_answers(expand(behaviors, recipe, "sampler")), -(-rows // rows_per_shard)
    runs, cpu, scans = [], [], []
    with _writers(answered, rows_per_shard) as writers:
        for _ in range(repeats):
            wall, used = _once(recipe, behaviors, shards, writers)
            runs.append(wall)
            cpu.append(used)
            scans.append(_scans(answered, rows_per_shard))
    # Of one folder as it fills; a program beside this one disturbs a scan only upward.
    scan = {size: min(each[size] for each in scans) for size in scans[0]}
    seconds = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    return {
        "bench": "writer",
        "device": platform.processor() or platform.machine(),
        "shape": f"{rows} rows in {shards} shards of {rows_per_shard}, {WRITERS} writers, {tempfile.gettempdir()}",
        "rows_per_s": rows / statistics.median(sum(run.values()) for run in runs),
        "literal_rows_per_s": None,
        "ratio_to_literal": None,
        "mfu": None,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "repeats": repeats,
        "seconds": seconds,
        # Of all processes together: what another program on the same cores does not change much.
        "rows_per_cpu_s": rows / statistics.median(cpu),
        "scan_cpu_ms": {str(size): 1000 * took for size, took in scan.items()},
        "scan_growth": power(scan) if len(scan) > 1 else None,
    }


def power(seconds: dict[int, float]) -> float:
    """The b of seconds = a * size ** b that is nearest in the logarithms (least squares)."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def _inputs(rows: int) -> tuple[Recipe, pa.Table]:
    if rows <= 0 or rows % TARGETS:
        raise InputError("--rows", rows, f"{TARGETS} targets share them: give a multiple of {TARGETS}")
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none", "prompt_tokens": [32, 64], "steps": 32},
            "target": {"model": "none"},
            "generation": {"samples_per_target": rows // TARGETS},
            "training": {"retain": {"path": "none"}},
        }
    )
    return recipe, made_up_behaviors(TARGETS)


def made_up_behaviors(count: int) -> pa.Table:
    """So many training behaviors of one target each (schema BEHAVIORS)."""
    behaviors = [
        {
            "behavior_id": f"b{number}",
            "goal": f"goal number {number}, some sixty characters long, as they mostly are",
            "category": None,
            "source": "bench",
            "split": "train",
            "target_index": 0,
            "target": f"Sure, here is what was asked for in goal number {number}",
            "refusal": "I'm sorry, but I can't help with that.",
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(behaviors, schema=BEHAVIORS)


@contextmanager
def _writers(rows: pa.Table, rows_per_shard: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Processes that are ready to write: each has the rows in memory that all share, as the plan's have their blocks."""
    with tempfile.TemporaryDirectory(prefix="dat-bench-") as folder, ExitStack() as stack:
        path = f"{folder}/rows.arrow"
        with pa.OSFile(path, "wb") as stream, pa.ipc.new_file(stream, rows.schema) as file:
            file.write_table(rows)
        spawn = multiprocessing.get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, spawn, _open, (path, rows_per_shard))) for _ in range(WRITERS)]
        for ready in [pool.submit(_write, folder, range(1)) for pool in pools]:
            ready.result()
        yield pools


def _open(path: str, rows_per_shard: int) -> None:
    """What a writer's process begins with."""
    global _own
    _own = (pa.ipc.open_file(pa.memory_map(path)).read_all(), rows_per_shard)


_own: tuple[pa.Table, int] | None = None


def _write(root: str, numbers: Sequence[int]) -> float:
    """Writes shards in a writer's process; returns the processor seconds that took."""
    assert _own is not None
    began = time.process_time()
    write_shards(root, *_own, numbers)
    return time.process_time() - began


def _once(
    recipe: Recipe, behaviors: pa.Table, shards: int, writers: Sequence[ProcessPoolExecutor]
) -> tuple[dict[str, float], float]:
    """Wall clock of each part, and processor seconds of all together."""
    seconds: dict[str, float] = {}
    used = 0.0

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        nonlocal used
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[part] = time.perf_counter() - wall
        used += time.process_time() - cpu

    with timed("expand"):
        expected = expand(behaviors, recipe, "sampler")["candidate_id"].to_pylist()
    with tempfile.TemporaryDirectory(prefix="dat-bench-") as root:
        with timed("write"):
            tasks = [pool.submit(_write, root, range(first, shards, WRITERS)) for first, pool in enumerate(writers)]
            used += sum(task.result() for task in tasks)
        with timed("resume_scan"):
            inventory = take_inventory(root)
            lost = forget_lost_rows(root, inventory)
        with timed("manifest"):
            publish(root, expected, inventory, "0" * 16)
        assert lost == 0
    return seconds, used


def _scans(answered: pa.Table, rows_per_shard: int) -> dict[int, float]:
    """Whole shards in a folder -> processor seconds of a resume scan, at an eighth, a quarter, half and all of them."""
    shards = answered.num_rows // rows_per_shard
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="dat-bench-") as root:
        written = 0
        for size in sorted({shards // part for part in (8, 4, 2, 1)} - {0}):
            write_shards(root, answered, rows_per_shard, range(written, size))
            written = size
            began = time.process_time()
            lost = forget_lost_rows(root, take_inventory(root))
            seconds[size] = time.process_time() - began
            assert lost == 0
    return seconds


def write_shards(root: str, rows: pa.Table, rows_per_shard: int, numbers: Sequence[int]) -> None:
    """Writes shards with their checkpoints, as a writer of the plan does."""
    for number in numbers:
        name = f"part-{number:06}.parquet"
        shard = rows.slice(number * rows_per_shard, rows_per_shard)
        write_shard(root, name, shard)
        write_shard(join(root, CHECKPOINT), name, shard.select(["candidate_id"]))


def made_up_answers(requests: pa.Table) -> pa.Table:
    """What the models would fill in: text that compresses about as well as theirs, a different one in each row."""
    rows = requests.num_rows
    letters = (
        np.random.default_rng(0).choice(np.frombuffer(b"etaoin shrdlu cmfwyp", np.uint8), rows + COMPLETION).tobytes().decode()
    )
    columns: dict[str, Any] = {
        "prompt": [letters[row : row + PROMPT] for row in range(rows)],
        "completion": [letters[row : row + COMPLETION] for row in range(rows)],
        "nfe": np.full(rows, 32),
        "sample_logprob": np.linspace(-9.0, -1.0, rows),
        "target_logprob": np.linspace(-3.0, -1.0, rows),
        "target_model": ["target"] * rows,
        "judge": ["refusal-rules"] * rows,
        "verdict": ["harmful"] * rows,
        "score": np.linspace(0.0, 1.0, rows),
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else requests[f.name] for f in CANDIDATES]
    return pa.table(arrays, schema=CANDIDATES).combine_chunks()
