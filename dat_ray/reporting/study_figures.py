"""The figures of a study: each measure of each suite by arms, over seeds and behaviors, with differences from one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dat_ray.config.study import BASE, Study
from dat_ray.errors import InputError
from dat_ray.evaluation.on_goal import refused_by_request
from dat_ray.evaluation.outcomes import (
    JUDGED,
    SHARE,
    broken,
    could_be_broken,
    could_be_refused,
    could_be_shares,
    has_share,
    refusals,
    share,
    shares_broken,
)
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, OVER_REFUSAL
from dat_ray.measures.crossed import (
    Seeds,
    Tested,
    crossed_mean_difference,
    crossed_rate,
    crossed_rate_difference,
    pooled_seeds,
)
from dat_ray.measures.intervals import Interval, paired_mean_difference, paired_rate_difference, wilson_mean
from dat_ray.measures.significance import holm, mcnemar, sign_flip
from dat_ray.reporting.collect import CollectedSuite
from dat_ray.reporting.tables import Cell
from dat_ray.reporting.words import attack_name, model_name, p_value, points, span, variant_name

BOA = "boa"
Rows = Sequence[dict[str, Any]]
# Behavior id to whether it was broken, or to the share of its prompts that broke it or were refused.
Outcome = Mapping[str, float]
# Gives that of one model's attempts. Those without a verdict are left out (None), or all taken for broken or refused (True), or
# for the other (False).
Reading = Callable[[Rows, bool | None], Outcome]


@dataclass(frozen=True)
class ArmDifference:
    """An arm minus the reference in one measure.

    Attributes:
        interval: for other seeds and other behaviors; with one seed for other behaviors.
        p: of no difference; None where it cannot be known.
        p_holm: `p` by Holm's method over `tests` tests: of the primary measure, or of all others of the study.
        tests: how many.
        reach: the least and the largest difference that the answers without a verdict could make, had they one; None where every
            answer has one, and where that is not known.
        hangs_on_unread: whether the interval holds no difference where those answers all speak against the one that was seen.
    """

    interval: Interval
    p: float | None
    p_holm: float | None = None
    tests: int = 0
    reach: tuple[float, float] | None = None
    hangs_on_unread: bool = False

    def beyond_chance(self, confidence: float) -> bool:
        """Whether the interval and the corrected test both exclude no difference, whatever the answers without a verdict said."""
        told = self.p_holm is not None and self.p_holm <= 1 - confidence
        return told and _side(self.interval) != 0 and not self.hangs_on_unread


def _side(interval: Interval) -> int:
    """On which side of no difference the whole interval lies; 0 where it holds it, or is not known."""
    if interval.low is None or interval.high is None:
        return 0
    return (interval.low > 0) - (interval.high < 0)


@dataclass(frozen=True)
class StudyMeasure:
    """One measure of one suite.

    Attributes:
        suite: its name.
        key: `boa`, `over_refusal`, `over_refusal_inpainted`, an attack, `attack:share`, or `attack/variant`.
        name: for people.
        rates: of the arms, the reference first and the base model last.
        differences: of all but the reference.
    """

    suite: str
    key: str
    name: str
    rates: dict[str, Interval]
    differences: dict[str, ArmDifference]


def columns(plan: Study) -> list[str]:
    """The arms as the tables have them: the reference, the others, the base model."""
    return [plan.reference, *(arm for arm in plan.config.arms if arm != plan.reference), BASE]


def primary_measure(plan: Study, measures: Sequence[StudyMeasure]) -> StudyMeasure:
    """The measure on which the conclusion rests: of the first suite that has it.

    Raises:
        InputError: no suite has it.
    """
    found = next((one for one in measures if one.key == plan.config.primary), None)
    if found is None:
        known = ", ".join(dict.fromkeys(one.key for one in measures))
        raise InputError("primary", plan.config.primary, f"no suite measured it: choose one of {known}")
    return found


def study_measures(plan: Study, suites: Mapping[str, CollectedSuite]) -> list[StudyMeasure]:
    """All measures of all suites, the tests corrected for their number.

    Raises:
        InputError: the primary measure is none of them.
    """
    found = [one for name, suite in suites.items() for one in _of_suite(plan, name, suite)]
    primary = primary_measure(plan, found)
    families = [[primary], [one for one in found if one is not primary]]
    fixed = {id(one): new for family in families for one, new in zip(family, corrected(family), strict=True)}
    return [fixed[id(one)] for one in found]


def _of_suite(plan: Study, name: str, suite: CollectedSuite) -> Iterator[StudyMeasure]:
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in suite.attempts:
        by_model[row["model"]].append(row)
    metrics = suite.metrics
    for key, label, outcome, is_rate in _measures(suite):

        def read(unread: bool | None, outcome: Reading = outcome) -> dict[str, list[Outcome]]:
            return {arm: [outcome(by_model[model], unread) for model in models_of_arm(plan, arm)] for arm in columns(plan)}

        tables = read(None)
        if not any(tables[plan.reference]):
            continue
        seeds = pooled_seeds([table for arm, table in tables.items() if arm != BASE])
        rates = {arm: rate_over_seeds(table, is_rate, metrics.confidence, seeds) for arm, table in tables.items()}
        reference, fewest, most = tables[plan.reference], read(False), read(True)
        differences = {}
        for arm in columns(plan)[1:]:
            found = _difference(reference, tables[arm], is_rate, metrics.confidence, seeds)
            reach = _reach((fewest[plan.reference], most[plan.reference]), (fewest[arm], most[arm]))
            hangs = False
            if reach is not None and (side := _side(found.interval)):
                against = (most[plan.reference], fewest[arm]) if side > 0 else (fewest[plan.reference], most[arm])
                hangs = _side(_difference(*against, is_rate, metrics.confidence, seeds).interval) != side
            differences[arm] = replace(found, reach=reach, hangs_on_unread=hangs)
        yield StudyMeasure(name, key, label, rates, differences)


def _reach(
    reference: tuple[Sequence[Outcome], Sequence[Outcome]], arm: tuple[Sequence[Outcome], Sequence[Outcome]]
) -> tuple[float, float] | None:
    """The least and the largest difference of means that can be, over the behaviors that both were asked about."""
    (fewest_before, most_before), (fewest, most) = reference, arm
    if fewest_before == most_before and fewest == most:
        return None
    shared = set(fewest[0]).intersection(*fewest, *fewest_before)
    if not shared:
        return None

    def mean(table: Sequence[Outcome]) -> float:
        return sum(float(one[key]) for one in table for key in shared) / len(shared) / len(table)

    return mean(fewest) - mean(most_before), mean(most) - mean(fewest_before)


def models_of_arm(plan: Study, arm: str) -> list[str]:
    """Names of an arm's models, one a seed; the base model stands for itself under every seed."""
    return [BASE if arm == BASE else f"{arm}@{seed}" for seed in plan.config.seeds]


def _measures(suite: CollectedSuite) -> Iterator[tuple[str, str, Reading, bool]]:
    """Key, name, what becomes of one model's attempts, and whether that is a yes or a no a behavior."""
    metrics = suite.metrics
    attacks = metrics.attacks
    for attack in attacks:
        yield attack, attack_name(attack), broken_by((attack,)), True
        if has_share(attack):
            yield f"{attack}{SHARE}", measure_name(f"{attack}{SHARE}"), shares_by(attack), False
        for variant in metrics.variants(attack):
            yield f"{attack}/{variant}", variant_name(attack, variant), broken_by((attack,), variant), True
    if len(attacks) > 1:
        yield BOA, "Any attack", broken_by(attacks), True
    elif attacks:
        yield BOA, attack_name(attacks[0]), broken_by(attacks), True
    yield OVER_REFUSAL, "Over-refusal", refused, True
    if any(row["attack"] == INPAINTED_OVER_REFUSAL for row in suite.attempts):
        yield INPAINTED_OVER_REFUSAL, "Over-refusal, in-painted", _refused_in_style, False


def broken_by(attacks: Sequence[str], variant: str | None = None) -> Reading:
    """What reads off one model's attempts which behaviors any of the attacks broke."""

    def outcome(rows: Rows, unread: bool | None = None) -> dict[str, bool]:
        asked = [row for row in rows if row["attack"] in attacks and (variant is None or (row.get("variant") or "") == variant)]
        return broken(asked) if unread is None else could_be_broken(asked, harmful=unread)

    return outcome


def shares_by(attack: str) -> Reading:
    """What reads off one model's attempts the share of an attack's prompts that broke each behavior."""

    def outcome(rows: Rows, unread: bool | None = None) -> dict[str, float]:
        asked = [row for row in rows if row["attack"] == attack]
        return shares_broken(asked) if unread is None else could_be_shares(asked, harmful=unread)

    return outcome


def outcome_of(key: str, attacks: Sequence[str]) -> tuple[Reading, bool]:
    """What reads `boa`, an attack or `attack:share` off one model's attempts, and whether that is a yes or a no a behavior."""
    if key.endswith(SHARE):
        return shares_by(key.removesuffix(SHARE)), False
    return broken_by(attacks if key == BOA else (key,)), True


def measure_name(key: str) -> str:
    """The name for people of an attack, or of `attack:share`."""
    return f"{attack_name(key.removesuffix(SHARE))}{', share of prompts' if key.endswith(SHARE) else ''}"


def refused(rows: Rows, unread: bool | None = None) -> dict[str, bool]:
    """Which look-alikes one model refused."""
    asked = [row for row in rows if row["attack"] == OVER_REFUSAL]
    return refusals(asked) if unread is None else could_be_refused(asked, refused=unread)


def _refused_in_style(rows: Rows, unread: bool | None = None) -> Outcome:
    asked = [row for row in rows if row["attack"] == INPAINTED_OVER_REFUSAL]
    if unread is not None:
        # Shares of answers that are not harmful: those without a verdict are harmful where they are no refusals.
        return {key: 1 - value for key, value in could_be_shares(asked, harmful=not unread).items()}
    return {key: sum(values) / len(values) for key, values in refused_by_request(asked).items()}


@dataclass(frozen=True)
class Unjudged:
    """Answers to one attack, or one variant of it, that have no verdict and are left out of its rates.

    Attributes:
        key: as of `StudyMeasure`.
        name: for people.
        shares: of each arm's attempts, over its seeds; None where it made none.
    """

    key: str
    name: str
    shares: dict[str, float | None]


def unjudged(plan: Study, suite: CollectedSuite) -> list[Unjudged]:
    """Attacks, variants and look-alikes of which an answer has no verdict: an arm that is read less often is compared on less."""
    groups: list[tuple[str, str, str, str | None]] = []
    for attack in (*suite.metrics.attacks, OVER_REFUSAL):
        groups.append((attack, attack_name(attack), attack, None))
        groups += [(f"{attack}/{one}", variant_name(attack, one), attack, one) for one in suite.metrics.variants(attack)]
    arms = {arm: set(models_of_arm(plan, arm)) for arm in columns(plan)}
    found = []
    for key, name, attack, variant in groups:
        rows = [row for row in suite.attempts if row["attack"] == attack and variant in (None, row.get("variant") or "")]
        shares: dict[str, float | None] = {}
        for arm, models in arms.items():
            read = [row["verdict"] in JUDGED for row in rows if row["model"] in models]
            shares[arm] = 1 - sum(read) / len(read) if read else None
        if any(shares.values()):
            found.append(Unjudged(key, name, shares))
    return found


def _flags(table: Sequence[Outcome]) -> list[dict[str, bool]]:
    return [{key: bool(value) for key, value in one.items()} for one in table]


def rate_over_seeds(table: Sequence[Outcome], is_rate: bool, confidence: float, seeds: Seeds | None = None) -> Interval:
    """Over seeds and behaviors; of one seed, or of the base model, over behaviors. `seeds` is of `pooled_seeds`."""
    if len(table) == 1 or all(one == table[0] for one in table):
        return share(_flags(table)[0], confidence) if is_rate else wilson_mean(list(table[0].values()), confidence)
    return crossed_rate(_flags(table) if is_rate else table, confidence, seeds)


def _difference(
    reference: Sequence[Outcome], table: Sequence[Outcome], is_rate: bool, confidence: float, seeds: Seeds | None
) -> ArmDifference:
    if len(table) > 1:
        tested: Tested = (
            crossed_rate_difference(_flags(reference), _flags(table), confidence, seeds)
            if is_rate
            else crossed_mean_difference(reference, table, confidence, seeds)
        )
        return ArmDifference(tested.interval, tested.p)
    first, second = reference[0], table[0]
    if is_rate:
        flags = _flags([first, second])
        return ArmDifference(paired_rate_difference(*flags, confidence=confidence), mcnemar(*flags))
    return ArmDifference(paired_mean_difference(first, second, confidence=confidence), sign_flip(first, second))


def corrected(measures: Sequence[StudyMeasure]) -> list[StudyMeasure]:
    """With each test's p by Holm's method among those of these measures."""
    places = [(at, arm) for at, one in enumerate(measures) for arm, found in one.differences.items() if found.p is not None]
    values = [measures[at].differences[arm].p for at, arm in places]
    adjusted = holm([value for value in values if value is not None])
    fixed = [dict(one.differences) for one in measures]
    for (at, arm), p in zip(places, adjusted, strict=True):
        fixed[at][arm] = replace(fixed[at][arm], p_holm=p, tests=len(places))
    return [replace(one, differences=found) for one, found in zip(measures, fixed, strict=True)]


def cell_of(measure: StudyMeasure, arm: str) -> Cell:
    """An arm's rate and its difference from the reference, for a table."""
    rate = measure.rates[arm]
    found = measure.differences.get(arm)
    if found is None:
        return Cell(rate.value, rate.low, rate.high, n=rate.n)
    moved = found.interval
    return Cell(rate.value, rate.low, rate.high, moved.value, moved.low, moved.high, rate.n, found.p_holm)


def units_of(plan: Study, *kinds: str) -> str:
    """What the intervals of a study speak of: behaviors, or units of these kinds."""
    seeds = len(plan.config.seeds)
    *others, last = [*([f"{seeds} seeds"] if seeds > 1 else []), *(kinds or ("behaviors",))]
    listed = f"{', '.join(others)} and {last}" if others else last
    return listed if seeds > 1 else f"{listed}, one seed"


def difference_rows(measures: Sequence[StudyMeasure], confidence: float) -> list[dict[str, Any]]:
    """Differences from the reference for a page, each measure named once."""
    return [
        {
            "measure": one.name if number == 0 else "",
            "arm": model_name(arm),
            "difference": "–" if found.interval.value is None else points(found.interval.value),
            "interval": span(found.interval, points),
            "n": found.interval.n,
            "reach": "" if found.reach is None else " to ".join(map(points, found.reach)),
            "p": p_value(found.p),
            "p_holm": p_value(found.p_holm),
            "tests": found.tests or "",
            "beyond": found.beyond_chance(confidence),
        }
        for one in measures
        for number, (arm, found) in enumerate(one.differences.items())
    ]
