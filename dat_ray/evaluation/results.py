"""The model of `metrics.json`: what an evaluation found, with names and types.

Whoever reads the file gets it from `load_metrics`, whoever writes it from `store_metrics`. Other tools rely on its names,
so three rules hold. A name stays, with its meaning and its unit. A field that a file lacks because an older version wrote it
takes its default here, which says "not recorded"; fields without a default are in every file, and one that is missing, or of
another type, is a damaged file. A field that this version does not know, of a newer one, is passed over in reading. None
stands where nothing was measured, and for limits that cannot be known; rates are shares in [0, 1].
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import not_
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from dat_ray.data.shards import join, write_bytes
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.evaluation.estimates import Benchmark, BrokenRate, Count, Estimate, Flag, JudgeFacts, Number, Part, Rate
from dat_ray.evaluation.gap_results import DistributionGap
from dat_ray.evaluation.judge_results import Calibration, Disagreement, ReadAnswers
from dat_ray.evaluation.prompt_results import GoalCalibration, OffGoal
from dat_ray.measures.diversity import Diversity
from dat_ray.measures.intervals import NOTHING, Interval

METRICS = "metrics.json"


class WorstCase(Part):
    """A rate if attempts without a verdict, unparsed and failed ones, had all been one thing or the other.

    Over every behavior (or harmless prompt, or attempt) that was asked, with or without a verdict.
    """

    unjudged: Count = Field(description="attempts without a verdict")
    n: Count = Field(description="behaviors, prompts or attempts asked")
    lowest: Rate = Field(description="rate if none of those attempts was harmful (over-refusal: refused)")
    highest: Rate = Field(description="rate if all of them were")


class AttackRate(BrokenRate):
    """`BrokenRate`, with its bounds."""

    worst_case: WorstCase | None = None


class BudgetPoint(BrokenRate):
    """Success within a budget at each behavior."""

    budget: Count


class Budget(Part):
    """Success of an attack stopped at a budget, at powers of two and at what the dearest behavior cost."""

    queries: list[BudgetPoint] = Field([], description="against prompts that the model was asked with")
    model_calls: list[BudgetPoint] = Field(
        [], description="against these and what the prompts cost: passes of samplers and searches, an attacker's answers"
    )


class CurvePoint(BrokenRate):
    """Success within a number of attempts at each behavior, of all with a judged attempt; the last is the attack's own rate."""

    attempts: Count


class AttackCounts(AttackRate):
    """`AttackRate`, with the attempts behind it."""

    attempts: Count = Field(0, description="made or planned, failed ones included")
    unparsed: Count = Field(0, description="attempts whose answer the judge could not read")
    errors: Count = Field(0, description="attempts that failed")


class AttackMetrics(AttackCounts):
    """One attack on one model."""

    attempt_rate: Rate = Field(Rate.of(NOTHING), description="share of judged attempts that are harmful")
    attempt_worst_case: WorstCase | None = Field(None, description="of `attempt_rate`")
    exchangeable: Flag = Field(False, description="whether attempts are draws of one kind, so that any k of them count alike")
    curve: list[CurvePoint] = Field([], description="success against attempts, at 1, 2, 4, ... and all")
    budget: Budget = Budget()
    off_goal: OffGoal | None = Field(
        None, exclude_if=not_, description="drawn prompts that are no attacks; only there where the recipe has a floor for them"
    )
    variants: dict[str, AttackCounts] = Field(
        {},
        exclude_if=not_,
        description="each variant of its prompts alone, such as a language; only there where attempts have variants",
    )


class AnswerKinds(Part):
    """XSTest's three kinds of answers to a harmless prompt, as shares."""

    full_compliance: Rate
    partial_refusal: Rate
    full_refusal: Rate


class OverRefusal(Rate):
    """Share of harmless look-alikes that were refused, with Wilson's interval."""

    UNITS: ClassVar[str | None] = "n"
    n: Count = Field(0, description="prompts whose answer could be judged")
    unparsed: Count = 0
    errors: Count = 0
    worst_case: WorstCase | None = None
    kinds: AnswerKinds | None = Field(None, description="where a judge that tells them apart has read the answers")


class InpaintedOverRefusal(Rate):
    """Share of refused answers to harmless prompts that the sampler drew for held-out harmless requests.

    Prompts of one request belong together: the interval is over requests.
    """

    UNITS: ClassVar[str | None] = "n"
    n: Count = Field(0, description="requests with a prompt whose answer could be judged")
    prompts: Count = Field(0, description="drawn or planned, failed ones included")
    unparsed: Count = 0
    errors: Count = 0


class Likelihood(Estimate):
    """Mean log p(target | goal) over held-out targets, with a bootstrap interval over behaviors."""

    VALUE: ClassVar[str] = "mean"
    UNITS: ClassVar[str | None] = "n_behaviors"
    mean: Number | None
    n_behaviors: Count = 0
    unit: str = "nats per token"
    errors: Count = Field(0, description="pairs of goal and target that could not be scored")


class Drift(Estimate):
    """Mean KL(base || model) over tokens of harmless responses, with a bootstrap interval over rows."""

    VALUE: ClassVar[str] = "mean"
    UNITS: ClassVar[str | None] = "n"
    mean: Number | None
    n: Count = Field(0, description="rows measured")
    left_out: Count = Field(0, description="rows whose prompt leaves no room for a response")
    cut: Count = Field(0, description="rows whose response was cut to its room")
    data: str = Field("retain", description="whose responses: `evaluation.kl_data`")
    unit: str = "nats per token"


@dataclass(frozen=True)
class SideEffects:
    """What is measured on the model itself: no judge changes it."""

    kl_drift: Drift | None = None
    utility: dict[str, dict[str, Benchmark]] = field(default_factory=dict)
    gap: DistributionGap | None = None


class ModelMetrics(Part):
    """One model."""

    attacks: dict[str, AttackMetrics]
    boa: AttackRate = Field(description="best of attacks: a behavior counts as broken if any attack broke it")
    over_refusal: OverRefusal
    over_refusal_inpainted: InpaintedOverRefusal | None = Field(
        None, exclude_if=not_, description="only there where the run has held-out harmless requests"
    )
    utility: dict[str, dict[str, Benchmark]] = Field(description="task to metric to figure; empty where none was asked for")
    target_logprob: Likelihood
    kl_drift: Drift | None = Field(None, description="null for the base model, and where it was not measured")
    gap: DistributionGap | None = Field(
        None, exclude_if=not_, description="only there where the recipe has `evaluation.gap` and the model is of a run"
    )
    weights: str = Field("unknown", description="fingerprint of the weights")

    def rate_of(self, attack: str, variant: str | None = None) -> Interval | None:
        """Success of an attack, or of one of its variants; None where it was not made on this model."""
        found = self.counts_of(attack, variant)
        return None if found is None else found.interval

    def counts_of(self, attack: str, variant: str | None = None) -> AttackCounts | None:
        """As `rate_of`, with the attempts behind it."""
        found = self.attacks.get(attack)
        return found if found is None or variant is None else found.variants.get(variant)

    @property
    def to_attacks(self) -> ReadAnswers:
        """Answers for the attacks' judge to read, failed attempts included."""
        made = self.attacks.values()
        return ReadAnswers(*(sum(getattr(one, count) for one in made) for count in ("attempts", "unparsed", "errors")))

    @property
    def to_harmless(self) -> ReadAnswers:
        """Answers for the judge of refusals to read."""
        found, drawn = self.over_refusal, self.over_refusal_inpainted
        asked = ReadAnswers(found.n + found.unparsed, found.unparsed, found.errors)
        return asked if drawn is None else asked + ReadAnswers(drawn.prompts, drawn.unparsed, drawn.errors)

    @property
    def every_answer(self) -> ReadAnswers:
        """Answers for the judges to read, whoever reads them."""
        return self.to_attacks + self.to_harmless


class Difference(Estimate):
    """A paired difference with its interval."""

    VALUE: ClassVar[str] = "difference"
    difference: Number | None


class WorstDifference(Part):
    """A difference of rates if attempts without a verdict had been what moves it farthest, over every behavior asked."""

    lowest: Difference = Field(description="if harmful for the first model and harmless for the second")
    highest: Difference = Field(description="if harmless for the first model and harmful for the second")


class PairedDifference(Difference):
    """Second minus first model in one measure, over the behaviors that both have."""

    UNITS: ClassVar[str | None] = "n"
    metric: str = Field(
        description="`asr`, `boa` (of the attacks that both were asked by, behavior by behavior), `over_refusal`, "
        "`over_refusal_inpainted` or `target_logprob`"
    )
    attack: str | None = Field(description="of `asr`")
    first: str
    second: str
    n: Count = Field(0, description="behaviors that both models have")
    p: Number | None = Field(None, description="of no difference: McNemar's exact test of rates, a sign-flip test of log p")
    tests: Count = Field(0, description="tests that `p_holm` is corrected for: all of `boa` here, or all others here")
    p_holm: Number | None = Field(None, description="`p` by Holm's method, to be held against 1 - confidence")
    worst_case: WorstDifference | None = Field(None, description="of rates of attacks")

    def beyond_chance(self, confidence: float) -> bool:
        """Whether the interval excludes no difference, and the corrected test does where it was made."""
        excluded = self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)
        return excluded and (self.p_holm is None or self.p_holm <= 1 - confidence)


class SeedsAndBehaviors(Estimate):
    """An interval for other training seeds and other behaviors; null with fewer than two of either."""

    VALUE: ClassVar[str] = "rate"
    UNITS: ClassVar[str | None] = "n_behaviors"
    rate: Number | None = Field(description="over the behaviors that every seed has")
    n_behaviors: Count


class SeedMean(Estimate):
    """A rate averaged over training seeds; `low` and `high` are Student's over seeds, on these behaviors."""

    VALUE: ClassVar[str] = "mean"
    UNITS: ClassVar[str | None] = "n_seeds"
    mean: Number | None
    n_seeds: Count
    values: list[Number] = Field(description="one a seed")
    seeds_and_behaviors: SeedsAndBehaviors | None = None


class SeedGroup(Part):
    """Models named NAME@SEED together."""

    seeds: list[str]
    attacks: dict[str, SeedMean]
    boa: SeedMean
    over_refusal: SeedMean


class Sampling(Part):
    """What a sampler drew for an attack."""

    diversity: Diversity
    nfe: Count = Field(description="forward passes")
    errors: Count
    fingerprint: str | None = None


class SuffixSearches(Part):
    """What one attack's searches for a suffix had to choose from, on one model.

    A suffix survives if its text gives the tokens that were searched. A step without one repeats its suffix.
    """

    searches: Count
    steps: Count
    steps_without: Count = Field(description="steps in which no candidate survived")
    drawn: Count = Field(description="candidates looked at")
    survived: Count = Field(description="candidates that survived")


class ReplayedSuite(Part):
    """The evaluation whose stored completions were scored again."""

    suite: str
    fingerprint: str


class Metrics(Part):
    """All of `metrics.json`."""

    judge: JudgeFacts
    models: Annotated[dict[str, ModelMetrics], Field(min_length=1)] = Field(
        description="in the order of the evaluation; the others are compared with the first"
    )
    paired: list[PairedDifference] = Field(description="for every pair of models")
    groups: dict[str, SeedGroup] = Field({}, description="by NAME, of models named NAME@SEED")
    second_judge: JudgeFacts | None = None
    refusal_judge: JudgeFacts | None = Field(None, description="reads the answers to harmless look-alikes")
    calibration: dict[str, Calibration] = Field(
        {}, description="agreement with people by `judge`, `second_judge` or `refusal_judge`, where it comes with the project"
    )
    goal_calibration: GoalCalibration | None = Field(
        None,
        exclude_if=not_,
        description="agreement of the similarity of goal and prompt with readers, where the recipe has a floor for it and the "
        "figures of its encoder come with the project",
    )
    disagreement: dict[str, Disagreement] | None = Field(None, description="by model, where there is a second judge")
    suite: str = "default"
    confidence: Number = Field(0.95, description="of every interval here")
    seed: Annotated[int, Field(strict=True)] = 0
    attempts: Count = Field(0, description="of all models")
    errors: Count = Field(0, description="attempts that failed")
    unparsed: dict[str, Count] = Field({}, description="by model")
    seconds: dict[str, Number] = Field({}, description="`total` of wall clock, and of answering by model")
    model_calls: dict[str, Count] = Field({}, description="forward passes and answers that the attempts cost, by model")
    sampler: Sampling | None = Field(None, description="of the attack `inpainting`, also in `samplers`")
    samplers: dict[str, Sampling] = Field({}, description="by attack")
    about_attacks: dict[str, dict[str, Count]] = Field(
        {},
        exclude_if=not_,
        description="what attacks tell of themselves, by attack: of a file of prompts what was used and what was left out",
    )
    searches: dict[str, dict[str, SuffixSearches]] = Field({}, description="for a suffix, by model and attack")
    replay: ReplayedSuite | None = Field(None, description="where stored completions were scored again")

    @property
    def first(self) -> str:
        """Name of the model that the others are compared with."""
        return next(iter(self.models))

    @property
    def attacks(self) -> list[str]:
        """Names of all attacks, in order."""
        return list(dict.fromkeys(attack for model in self.models.values() for attack in model.attacks))

    def goal_floor(self, model: str, attack: str) -> float | None:
        """The similarity to the goal below which a drawn prompt of an attack counted as none here; None where all counted.

        Whoever reads somebody else's evaluation has it from here: a recipe may name classes, which would be imported.
        """
        found = self.models[model].attacks.get(attack)
        return None if found is None or found.off_goal is None else found.off_goal.floor

    def variants(self, attack: str) -> list[str]:
        """Names of an attack's variants, in order."""
        found = (model.attacks[attack].variants for model in self.models.values() if attack in model.attacks)
        return list(dict.fromkeys(variant for variants in found for variant in variants))


def load_metrics(root: str) -> Metrics:
    """The metrics of an evaluation folder.

    Raises:
        ShardError: the file cannot be read, or an entry is missing or of another type.
    """
    path = join(root, METRICS)
    tree = stored_object(path, finite=False)
    with well_formed(path):
        try:
            return Metrics.model_validate(tree)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise ValueError(f"{where}: {first['msg']}") from None


def store_metrics(root: str, metrics: Metrics) -> None:
    """Writes the metrics of an evaluation folder."""
    write_bytes(join(root, METRICS), part_json(metrics).encode())


def part_json(part: Part) -> str:
    """A part as the file holds it."""
    return json.dumps(part.model_dump(mode="json"), indent=1)
