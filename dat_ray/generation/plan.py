"""The streaming plan: read requests, sample, respond, judge, write shards, with a checkpoint of finished rows.

A row's checkpoint needs a plan that starts with a read and ends with a write, ids that no stage changes, and blocks as
small as what a crash may cost: hence the repartition right after the read, and no batch larger than a block.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.datasource import FilenameProvider

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.parquet_options import parquet_options
from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import join, open_filesystem, scan_shards
from dat_ray.diagnosis import node_lines
from dat_ray.engines.roles import Engines
from dat_ray.errors import DatError
from dat_ray.generation.actors import EncoderActor, JudgeActor, RemoteLedger, RoleActor, SamplerActor, TargetActor
from dat_ray.generation.capacity import SUBCLUSTER_LABEL, files_group, generation_pools
from dat_ray.generation.finish import CHECKPOINT
from dat_ray.generation.goals import NO_GOALS, Goals
from dat_ray.generation.ledger import Ledger
from dat_ray.generation.ray_notice import hide_notice
from dat_ray.placement import beside_the_driver

# A pool grows when its load passes 1.75 tasks an actor, which one task in flight never does.
TASKS_IN_FLIGHT = 2


class ShardNames(FilenameProvider):
    """`part-EXECUTION-TASK.parquet`: a retried task writes its own file again, another execution never does."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{write_uuid}-{task_index:06}.parquet"


def start_ledger(limit: ErrorLimit, failed: dict[str, str]) -> RemoteLedger:
    """Starts the stage's ledger as an actor that lives as long as the driver's node."""
    return RemoteLedger(ray.remote(**beside_the_driver())(Ledger).remote(limit, failed))


def run_plan(
    recipe: Recipe, requests: str, root: str, engines: Engines, ledger: RemoteLedger, adapter: str | None, goals: Goals = NO_GOALS
) -> None:
    """Runs the plan until every row that has no checkpoint is written.

    Args:
        recipe: resolved recipe.
        requests: folder of parquet files of CANDIDATES rows to fill in.
        root: the round's folder, for shards and checkpoints.
        engines: how each role's engine is made.
        ledger: the stage's ledger.
        adapter: LoRA adapter folder of the target, or None.
        goals: that every prompt is compared with, where the recipe has an encoder.

    Raises:
        DatError: no node has room to look at a file.
        whatever Ray raises; the ledger says whether the stage was stopped on purpose.
    """
    cfg = recipe.generation
    _wait_for_a_file_task(recipe)
    hide_notice()
    filesystem, requests_inner = open_filesystem(requests)
    _, root_inner = open_filesystem(root)
    context = _context(
        recipe,
        CheckpointConfig(
            id_column="candidate_id",
            checkpoint_path=join(root_inner, CHECKPOINT),
            override_filesystem=filesystem,
            delete_checkpoint_on_success=False,
        ),
    )
    arguments = {"recipe": recipe, "engines": engines, "ledger": ledger, "adapter": adapter, "goals": goals}
    with DataContext.current(context), warnings.catch_warnings():
        # Without checkpoints a resume would make every row again: never go on without them.
        warnings.filterwarnings("error", message=".*Checkpointing will be disabled.*")
        rows = ray.data.read_parquet(
            requests_inner,
            filesystem=filesystem,
            file_extensions=["parquet"],
            partitioning=None,
            # One read task a file; the default would split a small file for as many tasks as there are CPUs.
            override_num_blocks=len(scan_shards(requests)),
        )
        rows = rows.repartition(target_num_rows_per_block=cfg.rows_per_block, strict=True)
        pools = generation_pools(recipe)
        roles: list[tuple[type[RoleActor], Pool, int]] = [
            (SamplerActor, pools["sampler"], recipe.sampler.batch_size),
            (TargetActor, pools["target"], recipe.target.batch_size),
            (JudgeActor, pools["judge"], recipe.judge.batch_size or cfg.rows_per_block),
        ]
        if "encoder" in pools:
            roles.insert(1, (EncoderActor, pools["encoder"], cfg.rows_per_block))
        for actor, pool, batch_size in roles:
            rows = rows.map_batches(actor, **_pool_arguments(pool, min(batch_size, cfg.rows_per_block), arguments))
        rows.write_parquet(
            root_inner,
            filesystem=filesystem,
            filename_provider=ShardNames(),
            # Storing a shard takes far less time than making it: more writers would only be more processes.
            concurrency=recipe.cluster.sampler.max_actors,
            schema=CANDIDATES,
            **parquet_options(CANDIDATES, cfg.rows_per_block),
        )


def _wait_for_a_file_task(recipe: Recipe) -> None:
    """Ray Data looks at the requests in tasks of one CPU, and waits for these without end: its own clock is not running yet."""
    selector = _file_selector(recipe)
    # Tried again by Ray where the node that took it is lost.
    probe = ray.remote(num_cpus=1, label_selector=selector)(_nothing).remote()
    done, _ = ray.wait([probe], timeout=recipe.timeouts.no_progress)
    if done:
        return
    ray.cancel(probe, force=True)
    where = "".join(f" labeled {label}={value}" for label, value in (selector or {}).items())
    raise DatError(
        f"no node{where} had one CPU for reading and writing files within timeouts.no_progress = "
        f"{recipe.timeouts.no_progress} s; {'; '.join(node_lines())}; end what holds them"
    )


def _nothing() -> None:
    """Runs where the tasks that read and write files would."""


def _file_selector(recipe: Recipe) -> dict[str, str] | None:
    """Keeps reading, writing and a resume's filter in the pools' group: they fit on any node, and would start one of another."""
    group = files_group(generation_pools(recipe))
    return {SUBCLUSTER_LABEL: group} if group else None


# Ray Data restarts a dead actor and hands its block to the next one without end; the ledger is what bounds that.
def _pool_arguments(pool: Pool, batch_size: int, constructor: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "batch_size": batch_size,
        "batch_format": "pyarrow",
        "compute": ActorPoolStrategy(
            min_size=pool.min_actors,
            max_size=pool.max_actors,
            initial_size=pool.min_actors,
            max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT,
        ),
        "fn_constructor_kwargs": constructor,
        "num_cpus": pool.num_cpus,
        "udf_modifying_row_count": False,
    }
    if pool.num_gpus:
        arguments["num_gpus"] = pool.num_gpus
    if pool.subcluster:
        arguments["label_selector"] = {SUBCLUSTER_LABEL: pool.subcluster}
    return arguments


def _context(recipe: Recipe, checkpoint: CheckpointConfig) -> DataContext:
    context = DataContext.get_current().copy()
    context.checkpoint_config = checkpoint
    context.execution_no_progress_timeout_s = recipe.timeouts.no_progress
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The newer parquet reader starts a pool of footer-reading processes, for a handful of small files here.
    context.use_datasource_v2 = False
    if selector := _file_selector(recipe):
        context.execution_options = copy.copy(context.execution_options)
        context.execution_options.label_selector = selector
    return context
