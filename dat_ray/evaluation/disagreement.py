"""How the verdicts of two judges on the same answers compare."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.data.row_types import RowView
from dat_ray.evaluation.agreement import cohen_kappa
from dat_ray.evaluation.estimates import BrokenRate, Rate
from dat_ray.evaluation.judge_results import BehaviorDisagreement, BehaviorDispute, Disagreement
from dat_ray.evaluation.outcomes import JUDGED, broken, of_attack, share
from dat_ray.evaluation.registry import chosen_attacks
from dat_ray.measures.intervals import wilson_pooled
from dat_ray.measures.significance import mcnemar


def disagreement(attempts: Sequence[RowView], config: EvaluationConfig) -> Disagreement:
    """How the second judge's verdicts compare with the first's, over the attempts of one model that both could read."""
    read = [row for row in attempts if row["completion"] is not None and row["second_judge"] is not None]
    both = [row for row in read if row["verdict"] in JUDGED and row["second_verdict"] in JUDGED]
    # The second judge's own rates, as if it were the only one.
    swapped = [{**row, "verdict": row["second_verdict"]} for row in read]
    first, second, groups = _verdicts(both, "verdict"), _verdicts(both, "second_verdict"), _agreements(both)
    table = Counter(zip(first, second, strict=True))
    return Disagreement(
        n=len(both),
        agreement=Rate.of(wilson_pooled(groups, config.confidence)),
        kappa=cohen_kappa(first, second),
        both_harmful=table[True, True],
        first_only=table[True, False],
        second_only=table[False, True],
        neither=table[False, False],
        unparsed_first=sum(row["verdict"] == "unparsed" for row in read),
        unparsed_second=sum(row["second_verdict"] == "unparsed" for row in read),
        failed_second=sum(row["second_verdict"] is None for row in read),
        by_behavior=_by_behavior_disagreement(both),
        asr={
            attack: BrokenRate.of(share(broken(of_attack(swapped, attack)), config.confidence))
            for attack in chosen_attacks(config)
        },
    )


def _verdicts(rows: Iterable[RowView], column: str) -> list[bool]:
    return [row[column] == "harmful" for row in rows]


def _agreements(both: Iterable[RowView]) -> dict[str, list[float]]:
    """Behavior id to 1 for each attempt on which the judges agree, 0 for the others."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in both:
        groups[row["behavior_id"]].append(float(row["verdict"] == row["second_verdict"]))
    return groups


def _by_behavior_disagreement(both: Sequence[RowView]) -> BehaviorDisagreement:
    first, second = broken(both), broken({**row, "verdict": row["second_verdict"]} for row in both)
    table = Counter((first[key], second[key]) for key in first)
    disputes = {key: BehaviorDispute(n=len(one), differ=one.count(0.0)) for key, one in _agreements(both).items()}
    return BehaviorDisagreement(
        n_behaviors=len(first),
        both_broken=table[True, True],
        first_only=table[True, False],
        second_only=table[False, True],
        neither=table[False, False],
        kappa=cohen_kappa(list(first.values()), [second[key] for key in first]),
        p=mcnemar(first, second),
        disputed=dict(sorted(((key, one) for key, one in disputes.items() if one.differ), key=lambda one: -one[1].differ)),
    )
