"""What Prometheus can ask of a run: every metric's name and meaning, and the one-line calls that count.

Ray exports them from each process under the prefix `ray_`, counters with the suffix `_total`
(`ray_dat_rows_total`); `cluster/grafana/dat_ray.json` draws them. Outside a Ray session a call does nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# name -> (meaning, label keys)
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dat_rows": ("rows that a role has finished, the failed ones among them", ("stage", "role")),
    "dat_row_errors": ("rows that a role could not do", ("stage", "role")),
    "dat_model_calls": ("forward passes of the sampler, queries of the target and the judge", ("stage", "role")),
    "dat_tokens": ("tokens that a role has written", ("stage", "role")),
    "dat_verdicts": ("judgments, by judge and verdict", ("stage", "judge", "verdict")),
    "dat_busy_seconds": ("seconds in which a process was at work; its rate is the utilization of one process", ("stage", "role")),
    "dat_engine_starts": ("engines that a process has loaded", ("stage", "role")),
    "dat_updates": ("optimizer updates", ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dat_stage_done": ("units of a stage that are done", ("stage", "unit")),
    "dat_stage_waiting": ("units of a stage that wait or are at work", ("stage", "unit")),
    "dat_loss_term": ("a training term at the last update, in nats", ("term",)),
    "dat_learning_rate": ("learning rate of the last update", ()),
    "dat_gradient_norm": ("gradient norm of the last update, before clipping", ()),
    "dat_update_seconds": ("wall clock of the last update", ()),
}

_made: dict[str, Any] = {}


def count(name: str, value: float, **labels: str) -> None:
    """Adds to a counter of `COUNTERS`; nothing where `value` is 0 or no Ray session is there."""
    metric = _metric(name, COUNTERS, "Counter")
    if metric is not None and value > 0:
        metric.inc(value, tags=labels)


def gauge(name: str, value: float, **labels: str) -> None:
    """Sets a gauge of `GAUGES`."""
    metric = _metric(name, GAUGES, "Gauge")
    if metric is not None:
        metric.set(value, tags=labels)


def role_batch(stage: str, role: str, *, rows: int, errors: int, calls: int, tokens: int, seconds: float) -> None:
    """One batch of one role.

    Args:
        stage: `generate` or `evaluate`.
        role: `sampler`, `target` or `judge`.
        rows: rows of the batch.
        errors: how many of them failed.
        calls: forward passes or queries.
        tokens: tokens written.
        seconds: wall clock of the batch.
    """
    labels = {"stage": stage, "role": role}
    for name, value in (
        ("dat_rows", rows),
        ("dat_row_errors", errors),
        ("dat_model_calls", calls),
        ("dat_tokens", tokens),
        ("dat_busy_seconds", seconds),
    ):
        count(name, value, **labels)


def verdicts(stage: str, judge: str, found: Iterable[str]) -> None:
    """Judgments of one batch."""
    for verdict, times in Counter(found).items():
        count("dat_verdicts", times, stage=stage, judge=judge, verdict=verdict)


def training_update(metrics: Mapping[str, Any]) -> None:
    """One optimizer update, with the metrics that its log keeps: each plain number but these three is a term."""
    count("dat_updates", 1)
    named = {"learning_rate": "dat_learning_rate", "gradient_norm": "dat_gradient_norm", "seconds": "dat_update_seconds"}
    for key, value in metrics.items():
        if key in named:
            gauge(named[key], value)
        elif isinstance(value, float):
            gauge("dat_loss_term", value, term=key)


def _metric(name: str, table: Mapping[str, tuple[str, tuple[str, ...]]], kind: str) -> Any:
    meaning, keys = table[name]
    # A process that has not imported ray has no session, and the training loop must not import it.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _made:
        from ray.util import metrics

        _made[name] = getattr(metrics, kind)(name, description=meaning, tag_keys=keys)
    return _made[name]
