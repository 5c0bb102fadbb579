"""A Ray cluster of several nodes on this machine, of which one is lost every so many seconds and another one comes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
from ray.cluster_utils import Cluster

from dat_ray.errors import DatError, error_line

# Value of the label `ray-subcluster` of the nodes that may be lost; the driver's own has none.
SUBCLUSTER = "spot"
# Between two looks at whether the work is done.
LOOK_SECONDS = 0.2
# Of each node: what lies in it are blocks of text.
STORE_BYTES = 150 * 2**20
# Ray gives a node 30 s to come up, which a machine with other work can miss.
START_ATTEMPTS = 3


class SpotNodes:
    """Nodes that come and go beside the driver's, which stays. Use as a context manager, on the main thread.

    Args:
        count: nodes beside the driver's.
        cpus: logical CPUs of each.

    Raises:
        DatError: a node does not start.

    Attributes:
        lost: ids of the nodes that were taken away.
    """

    def __init__(self, count: int, cpus: int) -> None:
        self.lost: list[str] = []
        self._count, self._cpus = count, cpus
        self._nodes: list[Any] = []

    def __enter__(self) -> SpotNodes:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # As `dat_ray.raysession` does for a Ray of its own: nobody else reaches it, and nothing is left in the home folder.
        if "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        for _ in range(self._count):
            self._add()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def _add(self) -> None:
        labels = {"ray-subcluster": SUBCLUSTER}
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                node = self._cluster.add_node(num_cpus=self._cpus, labels=labels, object_store_memory=STORE_BYTES)
            except Exception as error:  # a late node is a bare Exception of Ray's
                if attempt == START_ATTEMPTS:
                    raise DatError(
                        f"a node did not start in {attempt} tries ({error_line(error)}): end other work here"
                    ) from error
            else:
                self._nodes.append(node)
                return

    def churn(self, seconds: float, done: Callable[[], bool]) -> None:
        """Takes the oldest node away every so many seconds, without a word, and adds one, until the work is done."""
        due = time.monotonic() + seconds
        while not done():
            time.sleep(LOOK_SECONDS)
            if time.monotonic() >= due:
                oldest = self._nodes.pop(0)
                self._cluster.remove_node(oldest, allow_graceful=False)
                self.lost.append(oldest.node_id)
                self._add()
                due = time.monotonic() + seconds
