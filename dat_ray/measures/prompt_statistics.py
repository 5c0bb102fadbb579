"""What a set of drawn prompts is like, beyond its diversity: leakage, cost, likelihood and what the response adds to it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from dat_ray.data.row_types import RowView
from dat_ray.data.text import holds, normalize
from dat_ray.measures.diversity import Diversity, diversity
from dat_ray.measures.intervals import Interval, cluster_bootstrap, wilson_mean


def diagnose(rows: Iterable[RowView], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Diversity:
    """Diversity and diagnostics of a set of prompts, every interval over behaviors.

    Args:
        rows: with `behavior_id` and `prompt`; and, where they are known, `target`, `nfe`, `prompt_tokens`,
            `log_likelihood` and `other_log_likelihood` (nats). Rows without a prompt are left out.
        confidence, resamples, seed: of the intervals.
    """
    drawn = [row for row in rows if row["prompt"] is not None]
    prompts: dict[str, list[str]] = defaultdict(list)
    for row in drawn:
        prompts[row["behavior_id"]].append(row["prompt"])

    def by_behavior(value: Any, *needs: str) -> dict[str, list[float]]:
        """A behavior counts once, however many prompts it has, as it does for diversity."""
        groups: dict[str, list[float]] = defaultdict(list)
        for row in drawn:
            if all(row.get(name) is not None for name in needs):
                groups[row["behavior_id"]].append(float(value(row)))
        return {key: [sum(values) / len(values)] for key, values in groups.items()}

    def mean(value: Any, *needs: str) -> Interval:
        return cluster_bootstrap(by_behavior(value, *needs), confidence=confidence, resamples=resamples, seed=seed)

    def share(value: Any, *needs: str) -> Interval:
        means = by_behavior(value, *needs)
        return wilson_mean([means[key][0] for key in sorted(means)], confidence)

    return dataclasses.replace(
        diversity(prompts, confidence=confidence, resamples=resamples, seed=seed),
        leaked=share(lambda row: holds(row["prompt"], row["target"]), "target"),
        copied=share(lambda row: copied_share(row["prompt"], row["target"]), "target"),
        model_calls=mean(lambda row: row["nfe"], "nfe"),
        log_likelihood=mean(lambda row: row["log_likelihood"] / row["prompt_tokens"], "log_likelihood", "prompt_tokens"),
        gain=mean(
            lambda row: (row["log_likelihood"] - row["other_log_likelihood"]) / row["prompt_tokens"],
            "log_likelihood", "other_log_likelihood", "prompt_tokens",
        ),
    )  # fmt: skip


def copied_share(prompt: str, target: str) -> float:
    """Share of a response's distinct word pairs that a prompt holds; of its words, where it has a single one."""
    x, y = normalize(prompt).split(), normalize(target).split()
    size = min(2, len(y))
    wanted = {tuple(y[i : i + size]) for i in range(len(y) - size + 1)}
    if not size:
        return 0.0
    return len(wanted & {tuple(x[i : i + size]) for i in range(len(x) - size + 1)}) / len(wanted)
