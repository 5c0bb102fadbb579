"""Ray Train workers, whatever they train: placed within a deadline, started again when they die, watched while they work."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from dat_ray.config.cluster import Pool
from dat_ray.data.shards import join, open_filesystem, read_bytes, write_bytes
from dat_ray.diagnosis import StallWatch, node_lines
from dat_ray.errors import DatError, StorageError
from dat_ray.progress import listeners, stage_line
from dat_ray.raysession import kept_handlers
from dat_ray.training.room import room_within
from dat_ray.training.snapshot import check_snapshot
from dat_ray.training.trainer import WorkerInfo, no_reduce

SUBCLUSTER_LABEL = "ray-subcluster"
MAX_FAILURES = 3
DIED_AT_START = (RayActorError, WorkerGroupStartupFailedError)
RESUMES = "the last checkpoint is kept, --resume goes on from it"
SECONDS_BETWEEN_POLLS = 2.0
SECONDS_TO_ABORT = 15.0
_MOST_LINES = 100


@dataclass(frozen=True)
class WorkerGroup:
    """Ray Train workers that train something together.

    Attributes:
        verb: for lines, as `train`.
        name: of Ray Train's own state below `storage`, which it resumes.
        storage: local path or URI that all nodes share.
        pool: how many workers, elastic where `max_actors` is above `min_actors`, and what each asks for.
        section: of the recipe that holds the pool, for an error.
        start_seconds, wait_seconds: deadlines for the workers to be placed, and for one that waits for the others.
    """

    verb: str
    name: str
    storage: str
    pool: Pool
    section: str
    start_seconds: int
    wait_seconds: int

    @property
    def elastic(self) -> bool:
        return self.pool.min_actors < self.pool.max_actors


def run_workers(work: Callable[[dict[str, str]], Any], settings: dict[str, str], group: WorkerGroup) -> Any:
    """Runs `work(settings)` in workers that can add up tensors; starts all again when one dies.

    Ray must be initialized.

    Args:
        work: of each worker; see `without_retry` for its errors.
        settings: its argument.
        group: the workers.

    Returns:
        What the first worker returned.

    Raises:
        DatError: an altered list of checkpoints, the error that `work` returned, workers that keep dying, or resources that
            never came.
    """
    check_snapshot(group.storage, group.name)
    start_seconds = group.start_seconds
    for died_at_start in range(MAX_FAILURES + 1):
        no_room: Callable[[], bool] = lambda: False  # noqa: E731
        try:
            with _ray_train_timeouts(start_seconds, group.wait_seconds), ExitStack() as stack:
                if group.elastic:
                    no_room = stack.enter_context(room_within(start_seconds))
                outcome = _fit(_ray_trainer(work, settings, group))
            break
        except WorkerGroupError as error:
            cause = next(iter(error.worker_failures.values()), error)
            raise DatError(
                f"training workers failed {MAX_FAILURES + 1} times, the last time with: {_last_line(cause)}; {RESUMES}"
            ) from error
        except ControllerError as error:
            if isinstance(error.controller_failure, DIED_AT_START) and died_at_start < MAX_FAILURES:
                # Ray Train retries a worker that dies at work, and not one that dies while it starts.
                stage_line(f"{group.verb}: a worker died while it started; starting again from the last checkpoint")
                continue
            if not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                raise DatError(f"training failed: {_last_line(error.controller_failure)}; {RESUMES}") from error
            # An elastic group was tried again by Ray Train, each time with its own deadline.
            tries = f", {MAX_FAILURES + 1} times" if group.elastic else ""
            raise DatError(_not_placed(group, f"{start_seconds} s{tries}")) from error
        except RayActorError as error:
            if no_room():
                raise DatError(_not_placed(group, f"{start_seconds} s")) from error
            raise DatError(
                f"training failed: its controller, a process on the driver's node, ended ({_last_line(error)}); {RESUMES}"
            ) from error
        except TrainingFailedError as error:
            raise DatError(f"training failed: {_last_line(error)}") from error
    if isinstance(outcome, DatError):
        raise outcome
    return outcome


class _RayTrainer(TorchTrainer):
    """Ray's own would put a handler of SIGINT in place for good, which ends a training with exit 1, and nothing after it."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller


def _fit(trainer: _RayTrainer) -> Any:
    """Trains, and returns what the first worker returned; Ctrl-C ends the workers and then unwinds as everywhere."""
    try:
        with kept_handlers():
            return trainer.fit().return_value
    except KeyboardInterrupt:
        if trainer.controller is not None:
            # It ends itself, which is an error to whoever waits for it.
            with suppress(ray.exceptions.RayError):
                ray.get(trainer.controller.abort.remote(), timeout=SECONDS_TO_ABORT)
        raise


def _not_placed(group: WorkerGroup, deadline: str) -> str:
    pool = group.pool
    where = f" on nodes labeled {SUBCLUSTER_LABEL}={pool.subcluster}" if pool.subcluster else ""
    return (
        f"training workers did not start within timeouts.worker_group_start ({deadline}): {pool.min_actors} x "
        f"({pool.num_cpus:g} CPU, {pool.num_gpus:g} GPU){where} wanted; {'; '.join(node_lines())}; free some, or lower "
        f"{group.section}"
    )


def _ray_trainer(work: Callable[[dict[str, str]], Any], settings: dict[str, str], group: WorkerGroup) -> _RayTrainer:
    pool = group.pool
    filesystem, path = open_filesystem(group.storage)
    return _RayTrainer(
        work,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if pool.num_gpus else "gloo", timeout_s=group.wait_seconds),
        scaling_config=ScalingConfig(
            num_workers=(pool.min_actors, pool.max_actors) if group.elastic else pool.min_actors,
            use_gpu=pool.num_gpus > 0,
            resources_per_worker={"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})},
            label_selector={SUBCLUSTER_LABEL: pool.subcluster} if pool.subcluster else None,
        ),
        run_config=RunConfig(
            name=group.name,
            # Given as an object, since Ray Train by itself would not ask at a store's own address.
            storage_filesystem=filesystem,
            storage_path=path,
            # An elastic group that does not come up, since a node that was counted has gone, is counted again.
            failure_config=FailureConfig(MAX_FAILURES, controller_failure_limit=MAX_FAILURES if group.elastic else 0),
        ),
    )


def without_retry(work: Callable[[dict[str, str]], Any], settings: dict[str, str]) -> Any:
    """`work(settings)`, or the `DatError` that says why there is none: raised, it would be retried in vain.

    Storage that refuses may relent, so that is raised.
    """
    try:
        return work(settings)
    except StorageError:
        raise
    except DatError as error:
        return error


class LinesForDriver:
    """What workers say with `stage_line` for people, whose output goes nowhere: a file that the driver looks at.

    Args:
        root: folder that both see, local or a URI.
    """

    def __init__(self, root: str) -> None:
        self.path = join(root, "worker-lines.json")
        self._shown = self._read()

    def _read(self) -> list[str]:
        try:
            return list(json.loads(read_bytes(self.path)))
        except (OSError, ValueError):
            return []

    def written_by(self, worker: WorkerInfo) -> AbstractContextManager[None]:
        """In a worker: `written` by the first one, which speaks for all."""
        return self.written() if worker.rank == 0 else nullcontext()

    @contextmanager
    def written(self) -> Iterator[None]:
        """In a worker: keeps its lines inside a `with` block."""

        def add(event: dict[str, Any]) -> None:
            if event.get("event") == "line":
                # No two lines are the same, so that one which comes again is shown again.
                line = f"{time.strftime('%H:%M:%S', time.gmtime())} UTC {event['text']}"
                with suppress(OSError, StorageError):  # a line must not end the training
                    write_bytes(self.path, json.dumps([*self._read(), line][-_MOST_LINES:]).encode())

        listeners.append(add)
        try:
            yield
        finally:
            listeners.remove(add)

    def show(self) -> None:
        """In the driver: prints what is new."""
        lines = self._read()
        for line in lines:
            if line not in self._shown:
                stage_line(f"      {line}")
        self._shown = lines


def this_worker() -> WorkerInfo:
    """The Ray Train worker that this process is."""
    context = ray.train.get_context()
    world = context.get_world_size()
    return WorkerInfo(context.get_world_rank(), world, sum_over_workers if world > 1 else no_reduce)


def model_for_workers(model: str) -> str:
    """A model's name as every node understands it. An embedded model is not built here, but on the node that needs it."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def sum_over_workers(tensor: torch.Tensor) -> None:
    """Adds up a tensor over all workers, in place."""
    torch.distributed.all_reduce(tensor)


@contextmanager
def polled(show: Callable[[], int], stall: StallWatch) -> Iterator[None]:
    """Calls `show` every few seconds while the driver waits, and looks into the workers when its count stands still."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(SECONDS_BETWEEN_POLLS):
            try:
                stall.tick(show())
            except (OSError, StorageError, ray.exceptions.RayError):
                # A display must not end with the first hiccup of the storage or the cluster.
                continue

    thread = threading.Thread(target=poll, name="progress-train-poll", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show()


@contextmanager
def _ray_train_timeouts(start_seconds: int, wait_seconds: int) -> Iterator[None]:
    """Ray Train takes these from the environment; its own default is to wait for ever."""
    values = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_seconds),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(wait_seconds),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
