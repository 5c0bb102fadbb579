"""A deadline for an elastic worker group that no node has room for: Ray Train 2.60 counts again and again, without an end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import ray
from ray.util.placement_group import placement_group_table

from dat_ray.diagnosis import Actor, job_actors

SECONDS_BETWEEN_LOOKS = 1.0
_CONTROLLER = "TrainController"


@contextmanager
def room_within(seconds: float) -> Iterator[Callable[[], bool]]:
    """Ends Ray Train's controller once this job has had no training worker for so long, nor asked for room for some.

    What Ray Train asks for has a deadline of its own, after which it counts anew. A controller that is still starting, which
    takes a busy machine a while, has not looked for room yet.

    Args:
        seconds: counted from the controller's start, and again from the last worker that was seen.

    Yields:
        Tells whether it came to that: whoever waits for the controller gets an error of Ray's then.
    """
    over, ended = threading.Event(), threading.Event()

    def look() -> None:
        context, seen = ray.get_runtime_context(), time.monotonic()
        job, here = context.get_job_id(), context.get_node_id()
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                living = [actor for actor in job_actors() if actor.state != "DEAD"]
                # The id of a placement group ends with that of its job.
                asked = any(key.endswith(job) and group["state"] != "REMOVED" for key, group in placement_group_table().items())
            except ray.exceptions.RayError:
                continue
            # It always runs on the driver's node.
            controllers = [actor.pid for actor in living if _CONTROLLER in actor.name and actor.node == here and _is_up(actor)]
            if asked or not controllers or any("RayTrainWorker" in actor.name for actor in living):
                seen = time.monotonic()
            elif time.monotonic() - seen > seconds:
                for pid in controllers:
                    ended.set()
                    with suppress(ProcessLookupError):  # it ended by itself meanwhile
                        os.kill(pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=look, name="room-for-workers", daemon=True)
    thread.start()
    try:
        yield ended.is_set
    finally:
        over.set()
        thread.join()


def _is_up(actor: Actor) -> bool:
    return actor.state == "ALIVE" and bool(actor.pid)
