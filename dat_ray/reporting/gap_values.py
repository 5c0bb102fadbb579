"""The distribution gap as tables and figures take it: R on each set, the gaps between sets, how often the bound acted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dat_ray.evaluation.gap_results import (
    ATTACKED,
    FRESH_PROMPTS,
    FRESH_TARGETS,
    PLAIN,
    REWRITES_SET,
    TRAINING_PROMPTS,
)
from dat_ray.evaluation.results import Metrics
from dat_ray.measures.intervals import NOTHING, Interval

SET_NAMES = {
    TRAINING_PROMPTS: "Training prompts",
    FRESH_PROMPTS: "Fresh prompts, training targets",
    FRESH_TARGETS: "Fresh prompts, held-out targets",
    REWRITES_SET: "Written prompts, held-out targets",
}
WHOLE = "whole"
# Of a study: what an arm's training made of the gap that its prompts have for the base model.
BY_TRAINING = "by_training"
GAP_NAMES = {
    "new_prompts": "Fresh minus training prompts",
    "new_targets": "Held-out minus training targets",
    "people": "Written minus fresh prompts",
    WHOLE: "Written minus training prompts",
    BY_TRAINING: "The same, less the base model's",
}
# What the keys of its measures begin with.
GAP_KEY = "gap/"
KIND_NAMES = {PLAIN: "as they are", ATTACKED: "under the attack of training"}
# Value of each kind by set, by gap.
ByKind = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class GapColumn:
    """The gap of one model, or of one arm over its seeds.

    Attributes:
        name: of `base`, the fine-tuned model, an arm.
        sets: set -> kind -> R.
        gaps: gap -> kind -> R on its second set minus R on its first.
        clipped: set -> kind -> share of the scored prompts beyond the bound.
        goals: prompts of the training set that are the behaviors' own goals, and all of that set.
        errors: prompts that could not be scored.
        moved_sets, moved_gaps: `sets` and `gaps` minus those of the column that the others are compared with; empty of that one,
            and where none is.
    """

    name: str
    sets: ByKind
    gaps: ByKind
    clipped: Mapping[str, Mapping[str, float]]
    goals: tuple[int, int]
    errors: int
    moved_sets: ByKind = field(default_factory=dict)
    moved_gaps: ByKind = field(default_factory=dict)


class GapLine(NamedTuple):
    """R on a set, or a gap, of one kind.

    Attributes:
        key: in tables for programs.
        name: of the set or the gap, for people.
        kind: `plain` or `attacked`.
        cells: one a column; without a value where it was not measured.
        moved: the same of differences.
    """

    key: str
    name: str
    kind: str
    cells: list[Interval]
    moved: list[Interval]


@dataclass(frozen=True)
class GapView:
    """What is said of all columns together.

    Attributes:
        columns: in the order of the tables.
        bound: M, nats a token.
        confidence: of the intervals.
        units: what they speak of.
        subject: name of the column that the titles speak of.
        unbounded: the same columns without the bound; empty where that is not known.
    """

    columns: Sequence[GapColumn]
    bound: float
    confidence: float
    units: str
    subject: str
    unbounded: Sequence[GapColumn] = ()

    @property
    def kinds(self) -> list[str]:
        """Those that were measured, the one that the findings rest on last."""
        present = {kind for column in self.columns for by_kind in column.sets.values() for kind in by_kind}
        return [kind for kind in (PLAIN, ATTACKED) if kind in present]

    @property
    def lines(self) -> list[GapLine]:
        """All that was measured of some column, sets first."""
        found = []
        for what, names in (("sets", SET_NAMES), ("gaps", GAP_NAMES)):
            for key, name in names.items():
                for kind in self.kinds:
                    cells, moved = (
                        [getattr(column, part).get(key, {}).get(kind, NOTHING) for column in self.columns]
                        for part in (what, f"moved_{what}")
                    )
                    if any(cell.value is not None for cell in cells):
                        found.append(GapLine(f"{GAP_KEY}{key}/{kind}", name, kind, cells, moved))
        return found

    @property
    def about(self) -> GapColumn:
        """The column of the subject."""
        return next(column for column in self.columns if column.name == self.subject)


def run_gap(metrics: Metrics) -> GapView | None:
    """The gap of one evaluation's models; None where it was not measured."""
    columns, bound = [], 0.0
    for name, model in metrics.models.items():
        if model.gap is None:
            continue
        gap, bound = model.gap, model.gap.bound
        clipped = {
            key: {
                kind: mean.clipped.rate
                for kind, mean in ((PLAIN, one.plain), (ATTACKED, one.attacked))
                if mean is not None and mean.clipped.rate is not None
            }
            for key, one in gap.sets.items()
        }
        trained = gap.sets.get(TRAINING_PROMPTS)
        columns.append(
            GapColumn(
                name,
                {key: _kinds(one.plain, one.attacked) for key, one in gap.sets.items()},
                {key: _kinds(one.plain, one.attacked) for key, one in gap.gaps.items()},
                clipped,
                (0, 0) if trained is None else (trained.goals, trained.prompts),
                sum(one.errors for one in gap.sets.values()),
            )
        )
    return GapView(columns, bound, metrics.confidence, "behaviors", columns[-1].name) if columns else None


def _kinds(plain: Any, attacked: Any) -> dict[str, Interval]:
    return {kind: one.interval for kind, one in ((PLAIN, plain), (ATTACKED, attacked)) if one is not None}
