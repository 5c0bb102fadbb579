"""Joins the Ray cluster that is there, or starts a private one on this machine, and takes down only its own."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil
import ray

from dat_ray.config.cluster import ClusterConfig
from dat_ray.data.scratch import remove_abandoned
from dat_ray.diagnosis import remove_stacks
from dat_ray.errors import DatError
from dat_ray.preflight import bad_address, check_address, check_ray_folder
from dat_ray.progress import stage_line

# Idle pools, file tasks and a resume's filter each hold a logical CPU while they sleep, so that a laptop needs more
# logical CPUs than cores.
MINIMUM_LOCAL_CPUS = 8
# Ray gives its own processes 30 s to come up, which a machine with other work can miss.
START_ATTEMPTS = 3
SECONDS_TO_END = 10.0


@contextmanager
def start_ray(cluster: ClusterConfig) -> Iterator[None]:
    """Makes Ray usable inside a `with` block.

    In order: a session that this process has already (left as it is), the cluster that `RAY_ADDRESS` names (which is
    set inside a Ray job), or a new one on this machine. Only what was opened here is closed again.

    Args:
        cluster: `local_cpus` and `object_store_gib` shape a local cluster, and are not looked at otherwise.

    Raises:
        DatError: `RAY_ADDRESS` names a cluster that does not answer, or Ray does not start here.
        InputError: Ray's temporary folder cannot be written, or its path is too long.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    joins = bool(address) and address != "local"
    before = set(psutil.Process().children())
    own: set[psutil.Process] = set()
    try:
        # Ray puts a handler of its own in place, which dumps a stack and aborts: a SIGTERM should unwind instead.
        with kept_handlers():
            if joins:
                _connect(address)
            else:
                try:
                    _start_here(cluster)
                finally:
                    own = set(psutil.Process().children()) - before
        yield
    except BaseException:
        # Ray ends its processes without waiting for them, nor for those below.
        started = [*own, *(below for process in own for below in _below(process))]
        ray.shutdown()
        _end(psutil.wait_procs(started, SECONDS_TO_END)[1])
        psutil.wait_procs(started, SECONDS_TO_END)
        remove_abandoned("dat-")
        remove_stacks()
        raise
    ray.shutdown()


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Puts back the handlers of SIGINT and SIGTERM after a `with` block in which Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _connect(address: str) -> None:
    # Ray itself goes on trying for minutes where nothing answers.
    check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise bad_address(address, reason) from error


def _start_here(cluster: ClusterConfig) -> None:
    check_ray_folder()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Sampler and target share a machine's cores: a thread that spins for long where it waits for another takes that one's core,
    # which halved what both write. GNU's OpenMP reads this when a worker loads torch (benchmarks/2026-11-28-cpu.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray listens on every interface, and whoever reaches it can run code. With no mode set Ray asks for a token
        # and writes one to the home folder, where it changes how later clusters start; one that lives as long as
        # this process leaves nothing behind. (Setting the mode here would be too late: Ray reads it on import.)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for attempt in range(1, START_ATTEMPTS + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            ray.init(
                address="local",
                num_cpus=cluster.local_cpus or max(MINIMUM_LOCAL_CPUS, os.cpu_count() or 1),
                object_store_memory=int(cluster.object_store_gib * 2**30),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # a late node is a bare Exception of Ray's
            _end(set(psutil.Process().children(recursive=True)) - before)
            ray.shutdown()
            reason = " ".join(str(error).split())[:300]
            if attempt == START_ATTEMPTS or isinstance(error, ValueError):
                raise DatError(f"Ray did not start on this machine: {reason}") from error
            stage_line(f"Ray did not start on this machine, trying again: {reason}")


def _end(processes: Iterable[psutil.Process]) -> None:
    """Ends what a start that failed has left, which Ray itself would keep until this process ends."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
