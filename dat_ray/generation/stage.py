"""The generate stage: writes the candidates of one round, or continues where an earlier run ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.exceptions import ExecutionTimeoutError

from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.hold import hold
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.shards import (
    exists,
    has_manifest,
    join,
    read_file,
    read_table,
    write_manifest,
    write_shard,
)
from dat_ray.diagnosis import StallWatch, keep_traceback
from dat_ray.engines.factory import check_target_adapter
from dat_ray.engines.pinning import pinned, prompts_of
from dat_ray.engines.roles import Engines
from dat_ray.errors import DatError, HelperLost, InputError, StorageError
from dat_ray.generation.actors import RemoteLedger
from dat_ray.generation.capacity import check_cluster, generation_pools
from dat_ray.generation.expand import expand
from dat_ray.generation.finish import Inventory, forget_lost_rows, publish, take_inventory
from dat_ray.generation.goals import goals_to_compare
from dat_ray.generation.plan import run_plan, start_ledger
from dat_ray.generation.watch import Watch
from dat_ray.models.identity import check_weights, models_of, sampler_fingerprint
from dat_ray.progress import Progress, stage_line
from dat_ray.raysession import start_ray

REQUESTS = "_input"
# Rows of one file of requests: a few MB, so that reading them is spread over tasks.
ROWS_PER_REQUEST_FILE = 16384


@dataclass(frozen=True)
class GenerationReport:
    """What the stage made.

    Args:
        rows: rows of the round, the failed ones among them.
        errors: rows that failed.
        nfe: forward passes of the sampler, summed over rows.
        seconds: wall clock of this call; 0 where everything was there.
        skipped: whether everything was there.
    """

    rows: int
    errors: int
    nfe: int
    seconds: float
    skipped: bool


def generate(
    recipe: Recipe,
    run: RunDir,
    engines: Engines | None = None,
    adapter: str | None = None,
    round_index: int = FIRST_ROUND,
) -> GenerationReport:
    """Samples prompts for every training behavior, lets the target answer and the judge score them.

    Starts Ray, or joins the cluster that is there. What an earlier call finished is kept and not made again.

    Args:
        recipe: resolved recipe.
        run: its run directory, with `behaviors.parquet`.
        engines: how each role's engine is made; default: the recipe's backends.
        adapter: LoRA adapter folder for the target, from the round before; None for the base model.
        round_index: the round.

    Raises:
        InputError: a model has other weights than when this run began.
        DatError: too many rows failed, an engine did not start, the cluster is too small, nothing moved for
            `timeouts.no_progress` seconds, the folder belongs to another recipe, or another driver works on it.
    """
    root = run.candidates(round_index)
    weights = check_weights(
        run.root, models_of(recipe, "sampler", "target", "judge.reader", "encoder"), prompts_of(recipe, "judge")
    )
    recipe = pinned(recipe, run.root, "sampler", "target", "judge", "encoder")
    if has_manifest(root):
        return _report(read_table(root, fingerprint=run.fingerprint_of(recipe)))
    if adapter is not None and not exists(adapter):
        raise InputError("adapter", adapter, "no such folder: train the round before, or leave the adapter out")
    if adapter is not None:
        check_target_adapter(recipe.target, adapter)
    with hold(run.root):
        requests = write_requests(recipe, run, sampler_fingerprint(recipe.sampler, weights["sampler.model"]), round_index)
        return _generate(recipe, run, root, requests, engines or Engines(), adapter)


def _generate(
    recipe: Recipe, run: RunDir, root: str, requests: pa.Table, engines: Engines, adapter: str | None
) -> GenerationReport:
    started = time.monotonic()
    expected: list[str] = requests["candidate_id"].to_pylist()

    stored = take_inventory(root)
    inventory = stored.to_resume()
    lost = forget_lost_rows(root, inventory)
    for name in inventory.damaged:
        stage_line(f"generate: {join(root, name)} is cut short or altered: left out, its rows are made again")
    unjudged = stored.ids - inventory.ids
    if unjudged:
        stage_line(f"generate: no judge could be asked about {len(unjudged)} rows: they are made again")
    elif lost:
        stage_line(f"generate: rows of {lost} checkpoint(s) are not there any more and are made again")
    if set(expected) - inventory.ids:
        _make_rows(recipe, run, root, requests, inventory, engines, adapter)
        inventory = take_inventory(root, stored)
    done = publish(root, expected, inventory, run.fingerprint_of(recipe))
    return GenerationReport(done.rows, done.errors, done.nfe, time.monotonic() - started, skipped=False)


def write_requests(recipe: Recipe, run: RunDir, sampler: str, round_index: int) -> pa.Table:
    """The plan's input. Once written it is what the round is made of, however a later version would make ids or seeds.

    Args:
        recipe: resolved recipe.
        run: its run directory, with `behaviors.parquet`.
        sampler: fingerprint of the sampler, see `dat_ray.models.identity`.
        round_index: the round.

    Returns:
        CANDIDATES, with all that a model will fill in null; written now or read.

    Raises:
        InputError: no training behavior, or two rows with one id.
        ShardError: what is there is of another recipe, or damaged.
    """
    folder, mark = join(run.candidates(round_index), REQUESTS), run.fingerprint_of(recipe)
    if has_manifest(folder):
        return read_table(folder, fingerprint=mark)
    requests = expand(read_file(run.behaviors), recipe, sampler, round_index)
    starts = range(0, requests.num_rows, ROWS_PER_REQUEST_FILE)
    files = [
        write_shard(folder, f"part-{index:05}.parquet", requests.slice(start, ROWS_PER_REQUEST_FILE))
        for index, start in enumerate(starts)
    ]
    write_manifest(folder, files, mark)
    return requests


def _make_rows(
    recipe: Recipe, run: RunDir, root: str, requests: pa.Table, inventory: Inventory, engines: Engines, adapter: str | None
) -> None:
    total = requests.num_rows
    limit = ErrorLimit(total, recipe.generation.max_error_rate)
    with start_ray(recipe.cluster), Progress("generate", total) as progress:
        check_cluster(generation_pools(recipe))
        # What goes wrong is raised below in one line, with the traceback in a file.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ledger = start_ledger(limit, inventory.errors)
        where = join(run.logs, f"generate-{_round_name(root)}-stall.txt")
        stall = StallWatch("generate", where, recipe.timeouts.no_progress)
        try:
            with Watch(root, progress, ledger.note, stall):
                run_plan(recipe, join(root, REQUESTS), root, engines, ledger, adapter, goals_to_compare(requests))
        except Exception as error:
            raise _explain(error, _stop_reason(ledger), recipe, run, root, stall.found) from error
        finally:
            ledger.close()
        progress.update(total)


def _stop_reason(ledger: RemoteLedger) -> DatError | None:
    """Why the stage has stopped; that there is no ledger to ask is itself the reason."""
    try:
        return ledger.reason()
    except HelperLost as lost:
        return lost


def _round_name(root: str) -> str:
    """`round-N`, the last part of the round's folder."""
    return root.rpartition("/")[2]


def _explain(error: Exception, stopped: DatError | None, recipe: Recipe, run: RunDir, root: str, stall: str) -> DatError:
    """One line for a person, and the whole traceback in the run's logs."""
    details = keep_traceback(join(run.logs, f"generate-{_round_name(root)}-failure.txt"), error)
    if stopped is not None:
        return stopped
    if isinstance(error, DatError):
        return error
    if isinstance(error, ExecutionTimeoutError):
        pools = "; ".join(
            f"{role}: {pool.min_actors} x ({pool.num_cpus:g} CPU, {pool.num_gpus:g} GPU"
            + (f", subcluster {pool.subcluster})" if pool.subcluster else ")")
            for role, pool in generation_pools(recipe).items()
        )
        return DatError(
            f"no row moved for timeouts.no_progress = {recipe.timeouts.no_progress} s; pools ask for {pools}; "
            f"{stall or details}; --resume keeps what is done"
        )
    causes = list(_causes(error))
    lines = [line for cause in causes for line in str(cause).strip().splitlines()[-1:]]
    last = (lines[-1] if lines else type(error).__name__)[:300]
    # Engines do not raise through the plan: what the system refuses there, it refuses to the readers and writers.
    if any(isinstance(cause, OSError) for cause in causes):
        return StorageError(
            f"cannot write {root}: {last}; what was finished before is kept, "
            f"free space or mend the path, then --resume; {details}"
        )
    return DatError(f"generate failed: {last}; {details}; --resume keeps what is done")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _report(candidates: pa.Table) -> GenerationReport:
    """Of a stage that was finished before."""
    errors = candidates.num_rows - candidates["error"].null_count
    return GenerationReport(candidates.num_rows, errors, pc.sum(candidates["nfe"]).as_py() or 0, 0.0, skipped=True)
