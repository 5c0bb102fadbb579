"""From labeled prompts to the figures that come with the project: which similarity a prompt on its goal has.

    python studies/goal_threshold.py

Reads studies/labels/inpainted_prompts.jsonl, writes dat_ray/evaluation/calibrations/goal-similarity.json, and prints the table.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dat_ray.config.models import EncoderConfig
from dat_ray.evaluation.agreement import cohen_kappa
from dat_ray.evaluation.calibration import GOAL_FILE
from dat_ray.evaluation.estimates import Rate
from dat_ray.evaluation.prompt_results import CutFigures, GoalCalibration
from dat_ray.evaluation.results import part_json
from dat_ray.measures.intervals import wilson_pooled
from dat_ray.measures.style import auc

LABELS = Path(__file__).parent / "labels" / "inpainted_prompts.jsonl"
OUT = Path(__file__).parents[1] / "dat_ray" / "evaluation" / "calibrations" / GOAL_FILE
DATA = (
    "325 prompts that the shipped sampler drew for 162 goals of demo-train and demo-dev, read by language models by the rule of "
    "studies/labels/README.md; no held-out goal"
)
ON_GOAL = "goal"
FLOORS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
# Of Newton's steps; a fit of two features converges in about eight.
STEPS = 50
# Ridge on the weights, so that rows that can be parted without an error have a finite fit.
RIDGE = 1e-3


@dataclass(frozen=True)
class LabeledPrompt:
    """A drawn prompt that was read.

    Attributes:
        goal: that it was drawn for.
        label: what it asks for; `goal` where that is the goal.
        second_label: of another reader, where there was one.
        goal_similarity: cosine of goal and prompt.
        target_logprob: mean log p(target | prompt) of the untrained target, nats a token.
    """

    goal: str
    label: str
    second_label: str | None
    goal_similarity: float
    target_logprob: float

    @property
    def on_goal(self) -> bool:
        return self.label == ON_GOAL


def read_labels(path: Path = LABELS) -> list[LabeledPrompt]:
    """The committed labels."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        LabeledPrompt(row["goal"], row["label"], row.get("second_label"), row["goal_similarity"], row["target_logprob"])
        for row in rows
    ]


def calibrate_goal(
    rows: Sequence[LabeledPrompt], encoder: str, data: str, *, seed: int = 0, confidence: float = 0.95
) -> GoalCalibration:
    """Chooses cuts on half of the goals and measures them on the other half.

    Args:
        rows: all labeled prompts.
        encoder: name of the one that gave the similarity.
        data: what the rows are.
        seed: of the halves.
        confidence: of the intervals over goals.
    """
    goals = sorted({row.goal for row in rows})
    order = np.random.default_rng(seed).permutation(len(goals))
    first = {goals[at] for at in order[: len(goals) // 2]}
    chosen = [row for row in rows if row.goal in first]
    measured = [row for row in rows if row.goal not in first]
    table = np.array([[row.goal_similarity, row.target_logprob] for row in chosen])
    weights = logistic_weights(table, [row.on_goal for row in chosen])

    def both(row: LabeledPrompt) -> float:
        return float(np.array([row.goal_similarity, row.target_logprob, 1.0]) @ weights)

    def figures(score: Mapping[int, float], cut: float) -> CutFigures:
        return _figures(measured, [score[id(row)] for row in measured], cut, confidence)

    def chosen_cut(score: Mapping[int, float]) -> CutFigures:
        return figures(score, best_cut([score[id(row)] for row in chosen], [row.on_goal for row in chosen]))

    similarity = {id(row): row.goal_similarity for row in rows}
    twice = [(row.on_goal, row.second_label == ON_GOAL) for row in rows if row.second_label is not None]
    kappa = cohen_kappa([one for one, _ in twice], [other for _, other in twice])
    assert kappa is not None
    return GoalCalibration(
        encoder=encoder,
        data=data,
        confidence=confidence,
        prompts=len(rows),
        goals=len(goals),
        labels=dict(Counter(row.label for row in rows).most_common()),
        read_twice=len(twice),
        second_kappa=kappa,
        chosen_on=len(chosen),
        measured_on=len(measured),
        similarity=chosen_cut(similarity),
        target_logprob=chosen_cut({id(row): row.target_logprob for row in rows}),
        both=chosen_cut({id(row): both(row) for row in rows}),
        floors=[figures(similarity, floor) for floor in FLOORS],
    )


def _figures(rows: Sequence[LabeledPrompt], scores: Sequence[float], cut: float, confidence: float) -> CutFigures:
    taken, wanted = [score >= cut for score in scores], [row.on_goal for row in rows]
    right: dict[str, list[float]] = defaultdict(list)
    for row, one, other in zip(rows, taken, wanted, strict=True):
        right[row.goal].append(float(one == other))
    values, flags = np.array(scores), np.array(wanted)
    hits = sum(one and other for one, other in zip(taken, wanted, strict=True))
    return CutFigures(
        cut=cut,
        accuracy=Rate.of(wilson_pooled(right, confidence)),
        kappa=cohen_kappa(taken, wanted),
        precision=hits / sum(taken) if any(taken) else None,
        recall=hits / sum(wanted) if any(wanted) else None,
        auc=auc(values[flags], values[~flags]),
    )


def best_cut(scores: Sequence[float], wanted: Sequence[bool]) -> float:
    """The cut for which `score >= cut` agrees most often with `wanted`; halfway between two scores, the lowest of equals.

    Raises:
        ValueError: there are no rows, or not as many labels.
    """
    pairs = sorted(zip(scores, wanted, strict=True))
    if not pairs:
        raise ValueError("no rows to choose a cut on")
    # Below the first score everything is taken for wanted.
    right = sum(label for _, label in pairs)
    best, cut = right, pairs[0][0]
    for at, (score, label) in enumerate(pairs):
        right += -1 if label else 1
        after = pairs[at + 1][0] if at + 1 < len(pairs) else score + 1.0
        if right > best and after > score:
            best, cut = right, (score + after) / 2
    return cut


def logistic_weights(features: np.ndarray, wanted: Sequence[bool]) -> np.ndarray:
    """Weights of a logistic regression, the constant last, by Newton's method with a slight ridge.

    Args:
        features: [rows, features].
        wanted: of each row.
    """
    table = np.hstack([features, np.ones((len(features), 1))])
    labels, weights = np.array(wanted, dtype=float), np.zeros(table.shape[1])
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-table @ weights))
        slope = table.T @ (labels - chance) - RIDGE * weights
        curvature = (table * (chance * (1 - chance))[:, None]).T @ table + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def calibration() -> GoalCalibration:
    """What the file holds."""
    return calibrate_goal(read_labels(), EncoderConfig().model, DATA)


def line(name: str, found: CutFigures) -> str:
    """One row of the table."""
    rate = found.accuracy
    assert rate.rate is not None
    assert rate.low is not None
    assert rate.high is not None
    limits = f"{100 * rate.rate:.0f}% [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    shown = ["–" if one is None else f"{one:.2f}" for one in (found.kappa, found.precision, found.recall, found.auc)]
    return f"| {name} | {found.cut:.2f} | {limits} | {' | '.join(shown)} |"


def main() -> None:
    found = calibration()
    OUT.write_text(part_json(found) + "\n", encoding="utf-8")
    kappa = f"{found.read_twice} read twice, kappa {found.second_kappa:.2f}"
    print(f"chosen on {found.chosen_on} prompts, measured on {found.measured_on}; {kappa}")
    for name, one in (("similarity", found.similarity), ("log p", found.target_logprob), ("both", found.both)):
        print(line(name, one))
    for one in found.floors:
        print(line("similarity", one))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
