"""From busy intervals to figures: the window that counts, each role's utilization, rows lost or doubled, an extrapolation."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Busy:
    """One batch at work.

    Args:
        start: seconds since the epoch.
        end: the same.
        rows: of the batch.
    """

    start: float
    end: float
    rows: int


@dataclass(frozen=True)
class ProcessLog:
    """The batches of one process, in order.

    Args:
        role: sampler, target or judge.
        node: hexadecimal id of its node.
        batches: those that it finished.
    """

    role: str
    node: str
    batches: tuple[Busy, ...]


def read_logs(folder: Path) -> list[ProcessLog]:
    """The files that `dat_ray.bench.simulated` wrote. A last line that a killed process left cut short is left out."""
    logs = []
    for path in sorted(folder.glob("*-*-*.jsonl")):
        role, node, _ = path.stem.split("-")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        batches = tuple(Busy(**json.loads(line)) for line in lines if line.endswith("\n"))
        logs.append(ProcessLog(role, node, batches))
    return logs


def window(logs: Sequence[ProcessLog], actors: int, lost_nodes: Collection[str] = ()) -> tuple[float, float] | None:
    """From the start of the last actor to the first that runs dry.

    Args:
        logs: of one role.
        actors: of its pool. Processes beyond so many took a lost one's place, and do not move the start.
        lost_nodes: nodes that were taken away: a process there did not run dry.

    Returns:
        Seconds since the epoch; None where no such span is there.
    """
    worked = [log for log in logs if log.batches]
    starts = sorted(log.batches[0].start for log in worked)[:actors]
    ends = [log.batches[-1].end for log in worked if log.node not in lost_nodes]
    if not starts or not ends or min(ends) <= starts[-1]:
        return None
    return starts[-1], min(ends)


def utilization(logs: Sequence[ProcessLog], actors: int, span: tuple[float, float]) -> float:
    """Busy seconds inside a span, over the seconds that the pool's actors had in it.

    Args:
        logs: of one role.
        actors: of its pool; places that stand empty count as idle.
        span: start and end, in seconds since the epoch.
    """
    start, end = span
    busy = sum(max(0.0, min(one.end, end) - max(one.start, start)) for log in logs for one in log.batches)
    return busy / (actors * (end - start))


def idle_between(logs: Sequence[ProcessLog], span: tuple[float, float]) -> float | None:
    """Median seconds from the end of a batch to the start of the same process's next one; None without such a pair.

    Args:
        logs: of one role.
        span: both batches lie in it.
    """
    inside = [[one for one in log.batches if span[0] <= one.start and one.end <= span[1]] for log in logs]
    gaps = [later.start - earlier.end for batches in inside for earlier, later in pairwise(batches)]
    return statistics.median(gaps) if gaps else None


def bottleneck(logs: Sequence[ProcessLog], actors: Mapping[str, int]) -> str:
    """The role whose actors worked longest, each, over the whole run."""

    def busy(role: str) -> float:
        return sum(one.end - one.start for log in logs if log.role == role for one in log.batches) / actors[role]

    return max(actors, key=busy)


def seconds_a_row(logs: Sequence[ProcessLog]) -> float:
    """Mean busy seconds of a row, of one role that has done at least one."""
    batches = [one for log in logs for one in log.batches]
    return sum(one.end - one.start for one in batches) / sum(one.rows for one in batches)


def row_balance(expected: Sequence[str], found: Sequence[str]) -> dict[str, int]:
    """Rows that should be there and are not, rows that are there more than once, and rows that nobody asked for."""
    wanted, counts = set(expected), Counter(found)
    return {
        "lost": len(wanted - counts.keys()),
        "doubled": sum(times - 1 for times in counts.values()),
        "unknown": len(counts.keys() - wanted),
    }


def hours(rows: int, cards: int, seconds: float, share: float) -> float:
    """Hours that a pool takes in its steady state, without its start and its end.

    Args:
        rows: to be made.
        cards: actors of the pool.
        seconds: of one row on one card.
        share: utilization, above 0 and at most 1.
    """
    return rows * seconds / (cards * share) / 3600
