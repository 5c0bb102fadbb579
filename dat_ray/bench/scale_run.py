"""One run of the real generation plan with simulated engines, and what it shows: utilization, rows, memory, the end."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from dat_ray.bench.simulated import Simulation, StatedTime, simulated_engines
from dat_ray.bench.spot import SUBCLUSTER, SpotNodes
from dat_ray.bench.utilization import (
    ProcessLog,
    bottleneck,
    hours,
    idle_between,
    read_logs,
    row_balance,
    seconds_a_row,
    utilization,
    window,
)
from dat_ray.bench.writer import TARGETS, made_up_answers, made_up_behaviors, write_shards
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir, open_run
from dat_ray.data.shards import MANIFEST, read_file, read_table, write_file
from dat_ray.generation.expand import expand
from dat_ray.generation.stage import GenerationReport, generate, write_requests
from dat_ray.models.identity import sampler_fingerprint, weights_of
from dat_ray.raysession import start_ray

Number = TypeVar("Number", int, float)

ROLES = ("sampler", "target", "judge")
# Samplers that one target and one judge serve: their batches are larger and their rows cheaper.
SAMPLERS_PER_HELPER = 4
# Samplers of a node that may be lost: a machine of eight cards.
SAMPLERS_PER_NODE = 8
# Logical CPUs of an actor, which sleeps, and of the tasks that read and write files.
ACTOR_CPUS, TASK_CPUS = 0.1, 6
# The paper's prompts (100 behaviors, 12 targets, 84 samples, rounded) and the cluster that they are put on.
PAPER_ROWS, PAPER_CARDS = 100_000, 8
# Rows that a resume finds missing.
MISSING_SHARDS = 1


@dataclass(frozen=True)
class Load:
    """What is run.

    Args:
        samplers: actors of the sampler's pool.
        rows: of the round.
        times: role -> its stated time, as it is slept.
        speed: by which the stated times were divided.
        batch_size: rows of a batch of the sampler.
        rows_per_shard: `generation.rows_per_block`.
        spot_seconds: after so many seconds each a node is lost; None for a machine that nothing disturbs.
    """

    samplers: int
    rows: int
    times: dict[str, StatedTime]
    speed: float = 1.0
    batch_size: int = 32
    rows_per_shard: int = 64
    spot_seconds: float | None = None

    @property
    def actors(self) -> dict[str, int]:
        """Role -> actors of its pool."""
        return {"sampler": self.samplers} | dict.fromkeys(ROLES[1:], helpers(self.samplers))

    @property
    def nodes(self) -> int:
        """Nodes that may be lost, where any may."""
        return max(2, math.ceil(self.samplers / SAMPLERS_PER_NODE))


def helpers(samplers: int) -> int:
    """Actors of the target's pool, and of the judge's."""
    return math.ceil(samplers / SAMPLERS_PER_HELPER)


def run_load(load: Load, root: Path) -> dict[str, Any]:
    """Runs it on a Ray of its own, or on the session that this process has.

    Args:
        load: what is run.
        root: an empty folder.

    Raises:
        DatError: Ray did not start, or generation failed.
    """
    recipe, run, notes = _prepare(load, root)
    simulation = Simulation(str(notes), load.times, load.samplers)

    def work() -> tuple[GenerationReport, DriverWatch]:
        with DriverWatch() as watch:
            return generate(recipe, run, simulated_engines(simulation)), watch

    lost: list[str] = []
    if load.spot_seconds is None:
        with start_ray(recipe.cluster):
            report, watch = work()
    else:
        with SpotNodes(load.nodes, _node_cpus(load)) as nodes:
            report, watch = _beside(work, lambda done: nodes.churn(load.spot_seconds or 0.0, done))
            lost = nodes.lost
    return _figures(load, run, notes, report, watch) | _pools(load, read_logs(notes), lost, watch)


def time_resume(shards: int, rows_per_shard: int, root: Path) -> dict[str, float]:
    """Seconds that a stage takes to go on in a folder of so many finished shards, of which one more is missing.

    Ray is up before the clock starts.

    Args:
        shards: finished ones.
        rows_per_shard: `generation.rows_per_block`.
        root: an empty folder.

    Raises:
        DatError: Ray did not start, or generation failed.
    """
    rows = (shards + MISSING_SHARDS) * rows_per_shard
    load = Load(1, rows, dict.fromkeys(ROLES, StatedTime(0.0)), rows_per_shard=rows_per_shard)
    recipe, run, notes = _prepare(load, root)
    requests = write_requests(recipe, run, _sampler_of(recipe), FIRST_ROUND)
    write_shards(run.candidates(FIRST_ROUND), made_up_answers(requests), rows_per_shard, range(shards))
    with start_ray(recipe.cluster):
        began = time.time()
        generate(recipe, run, simulated_engines(Simulation(str(notes), load.times)))
        took = time.time() - began
    first = min(batch.start for log in read_logs(notes) for batch in log.batches)
    return {"shards": shards, "rows": rows, "first_new_row_s": first - began, "manifest_s": took}


class DriverWatch:
    """Samples this process's memory and the machine's CPUs while its `with` block runs.

    Attributes:
        memory: (seconds since the epoch, bytes of resident memory).
        cpu: (seconds since the epoch, share of the machine's CPUs in use since the sample before, by whatever program).
        own: (seconds since the epoch, processor seconds of this process and all below it, Ray's among them, so far).
    """

    # Seconds from sample to sample; `own` goes through every process of the machine.
    INTERVAL, OWN_INTERVAL = 0.5, 5.0

    def __init__(self) -> None:
        self.memory: list[tuple[float, int]] = []
        self.cpu: list[tuple[float, float]] = []
        self.own: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="driver-watch", daemon=True)

    def __enter__(self) -> DriverWatch:
        self._process = psutil.Process()
        psutil.cpu_percent()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _follow(self) -> None:
        while not self._stop.wait(self.INTERVAL):
            self._sample()

    def _sample(self) -> None:
        now = time.time()
        self.memory.append((now, self._process.memory_info().rss))
        self.cpu.append((now, psutil.cpu_percent() / 100))
        if not self.own or now - self.own[-1][0] >= self.OWN_INTERVAL:
            self.own.append((now, sum(map(_cpu_seconds, [self._process, *self._process.children(recursive=True)]))))


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended meanwhile
        return 0.0
    return float(times.user + times.system)


def _prepare(load: Load, root: Path) -> tuple[Recipe, RunDir, Path]:
    recipe = recipe_of(load)
    run = open_run(str(root / "run"), recipe, resume=False)
    write_file(run.behaviors, made_up_behaviors(load.rows // recipe.generation.samples_per_target))
    notes = root / "notes"
    notes.mkdir()
    return recipe, run, notes


def recipe_of(load: Load) -> Recipe:
    """The recipe of a run: its rows, batches and pools."""
    subcluster = None if load.spot_seconds is None else SUBCLUSTER
    pools = {
        role: {"min_actors": actors, "max_actors": actors, "num_cpus": ACTOR_CPUS, "subcluster": subcluster}
        for role, actors in load.actors.items()
    }
    return Recipe.model_validate(
        {
            "name": "scale",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none", "prompt_tokens": [64], "steps": 64, "batch_size": load.batch_size},
            "target": {"model": "none", "batch_size": load.rows_per_shard, "max_new_tokens": 256},
            "generation": {
                # As many behaviors as share the rows evenly, up to the paper's number.
                "samples_per_target": load.rows // math.gcd(load.rows, TARGETS),
                "rows_per_block": load.rows_per_shard,
            },
            "training": {"retain": {"path": "none"}},
            "cluster": pools | {"local_cpus": TASK_CPUS + math.ceil(ACTOR_CPUS * sum(load.actors.values()))},
        }
    )


def _node_cpus(load: Load) -> int:
    return math.ceil(ACTOR_CPUS * sum(load.actors.values()) / load.nodes) + math.ceil(TASK_CPUS / load.nodes)


def _sampler_of(recipe: Recipe) -> str:
    return sampler_fingerprint(recipe.sampler, weights_of(recipe.sampler.model))


def _beside(
    work: Callable[[], tuple[GenerationReport, DriverWatch]], disturb: Callable[[Callable[[], bool]], None]
) -> tuple[GenerationReport, DriverWatch]:
    """Works in a thread, since only the main one may start a node."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        disturb(running.done)
        return running.result()


def _figures(load: Load, run: RunDir, notes: Path, report: GenerationReport, watch: DriverWatch) -> dict[str, Any]:
    """Rows, memory and the end."""
    root = run.candidates(FIRST_ROUND)
    logs = read_logs(notes)
    expected = expand(read_file(run.behaviors), recipe_of(load), _sampler_of(recipe_of(load)))["candidate_id"]
    found = read_table(root)["candidate_id"]
    last = max(batch.end for log in logs for batch in log.batches)
    sampled = sum(batch.rows for log in logs if log.role == "sampler" for batch in log.batches)
    memory = [bytes_ for _, bytes_ in watch.memory]
    return {
        "rows": load.rows,
        "actors": load.actors,
        "seconds": report.seconds,
        "row_balance": row_balance(expected.to_pylist(), found.to_pylist()) | {"failed": report.errors},
        "sampled_again": sampled - load.rows,
        "last_row_to_manifest_s": (Path(root) / MANIFEST).stat().st_mtime - last,
        "driver_mib": {"before": memory[0] / 2**20, "peak": max(memory) / 2**20},
    }


def _pools(load: Load, logs: list[ProcessLog], lost: list[str], watch: DriverWatch) -> dict[str, Any]:
    """Utilization in the bottleneck's window, and what follows from it; null where there is no such window."""
    narrow = bottleneck(logs, load.actors)
    by_role = {role: [log for log in logs if log.role == role] for role in ROLES}
    span = window(by_role[narrow], load.actors[narrow], lost)
    found: dict[str, Any] = {"bottleneck": narrow, "nodes_lost": len(lost)}
    if span is None:
        return found | dict.fromkeys(
            ("window_s", "tail_s", "utilization", "idle_s_a_batch", "machine_cpu", "cores_taken", "driver_growth", "paper_hours")
        )
    shares = {role: utilization(by_role[role], load.actors[role], span) for role in ROLES}
    own, cpu = _within(watch.own, span), [share for _, share in _within(watch.cpu, span)]
    # What a pool of the paper's size is, where the samplers are as many as its cards.
    pool = PAPER_CARDS * load.actors[narrow] / load.samplers
    seconds = seconds_a_row(by_role[narrow]) * load.speed
    return found | {
        "window_s": span[1] - span[0],
        "tail_s": max(one.end for log in logs for one in log.batches) - span[1],
        "utilization": shares,
        "idle_s_a_batch": idle_between(by_role[narrow], span),
        "machine_cpu": statistics.fmean(cpu) if cpu else None,
        # The processor seconds of a process that was lost are not in the last sum.
        "cores_taken": (own[-1][1] - own[0][1]) / (own[-1][0] - own[0][0]) if len(own) > 1 and not lost else None,
        "driver_growth": growth(watch.memory, by_role[narrow], span),
        "paper_hours": hours(PAPER_ROWS, 1, seconds, shares[narrow] * pool),
    }


def growth(memory: Sequence[tuple[float, int]], logs: Sequence[ProcessLog], span: tuple[float, float]) -> dict[str, float | None]:
    """By how much the driver grew in the later half of a window: in the first half queues fill and its buffers grow to size.

    Args:
        memory: (seconds since the epoch, bytes).
        logs: of the bottleneck's pool.
        span: the window.

    Returns:
        `mib`, and `bytes_a_row` of that pool in the same time; None where nothing was sampled or no batch ended.
    """
    later = ((span[0] + span[1]) / 2, span[1])
    samples = _within(memory, later)
    rows = sum(batch.rows for log in logs for batch in log.batches if later[0] <= batch.end <= later[1])
    grown = samples[-1][1] - samples[0][1] if samples else None
    return {
        "mib": None if grown is None else grown / 2**20,
        "bytes_a_row": None if grown is None or not rows else grown / rows,
    }


def _within(samples: Sequence[tuple[float, Number]], span: tuple[float, float]) -> list[tuple[float, Number]]:
    return [(at, value) for at, value in samples if span[0] <= at <= span[1]]
