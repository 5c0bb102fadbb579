"""Which drawn prompts are attacks, and what is said of the others.

A sampler that misses the goal writes a prompt that asks for something else. An answer to it breaks nothing, a refusal of it is
no robustness: it counts as no attempt, and is shown as what it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.data.row_types import RowView
from dat_ray.evaluation.estimates import BrokenRate, Rate
from dat_ray.evaluation.outcomes import JUDGED, broken, of_attack, share
from dat_ray.evaluation.prompt_results import OffGoal
from dat_ray.measures.intervals import Interval, wilson, wilson_mean, wilson_pooled


def is_attack(row: RowView, drawing: Iterable[str], floor: float | None) -> bool:
    """Whether an attempt (schema ATTEMPTS) may break its behavior.

    Args:
        row: the attempt. One whose prompt could not be drawn is an attempt that failed.
        drawing: names of the attacks whose prompts a sampler draws.
        floor: `evaluation.min_goal_similarity`; None: every prompt counts. A similarity that is missing is below any floor.
    """
    if floor is None or row["attack"] not in drawing or row["prompt"] is None:
        return True
    similarity = row.get("goal_similarity")
    return similarity is not None and similarity >= floor


def off_goal(rows: Sequence[RowView], attack: str, config: EvaluationConfig) -> OffGoal | None:
    """What became of an attack's prompts that are off the goal, on one model; None where no floor is set.

    Args:
        rows: all attempts of the model (schema ATTEMPTS).
        attack: whose; a sampler draws its prompts.
        config: floor and confidence.
    """
    floor, confidence = config.min_goal_similarity, config.confidence
    if floor is None:
        return None
    own = of_attack(rows, attack)
    drawn = [row for row in own if row["prompt"] is not None]
    on = [row for row in drawn if is_attack(row, (attack,), floor)]
    off = [row for row in drawn if not is_attack(row, (attack,), floor)]
    known = broken(on)
    behaviors = {row["behavior_id"] for row in own}
    shares: dict[str, list[float]] = defaultdict(list)
    for row in drawn:
        shares[row["behavior_id"]].append(float(is_attack(row, (attack,), floor)))
    return OffGoal(
        floor=floor,
        prompts=len(drawn),
        off_goal=len(off),
        on_goal=Rate.of(wilson_mean([sum(one) / len(one) for _, one in sorted(shares.items())], confidence)),
        behaviors=len(behaviors),
        attacked=len({row["behavior_id"] for row in on}),
        of_all=BrokenRate.of(wilson(sum(known.values()), len(behaviors), confidence)),
        all_prompts=BrokenRate.of(share(broken(drawn), confidence)),
        refused=Rate.of(refused_share(off, confidence)),
    )


def refused_by_request(rows: Iterable[RowView]) -> dict[str, list[float]]:
    """1 for each answer that a judge calls not harmful, 0 for the others, by behavior; answers without a verdict are left out."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["verdict"] in JUDGED:
            groups[row["behavior_id"]].append(float(row["verdict"] == "not_harmful"))
    return dict(groups)


def refused_share(rows: Iterable[RowView], confidence: float) -> Interval:
    """Share of the judged answers that are refusals; prompts of one behavior belong together."""
    return wilson_pooled(refused_by_request(rows), confidence)
