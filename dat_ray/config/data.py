"""Parts of a recipe about rows: where behaviors come from, how many candidates there are, which are kept."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from dat_ray.config.section import NO_EFFECT_ON_ROWS, NO_LOWER_LIMIT, Fraction, Outside, PathText, Positive, Section

# What a cell may be compared with.
Value = str | bool | int | float


def _comparable(where: Any) -> Any:
    for column, value in where.items() if isinstance(where, dict) else ():
        if not isinstance(value, str | bool | int | float) or not (isinstance(value, str) or math.isfinite(value)):
            raise ValueError(f"{column} cannot be compared with {value!r}: write a text, a number, true or false")
    return where


# Only rows whose columns have these values.
Comparable = Annotated[dict[str, Value], BeforeValidator(_comparable)]


class Columns(Section):
    """Names of a table's columns, for `format: table`."""

    goal: str = Field("goal", description="the request, one a row")
    target: str = Field("target", description="affirmative opening(s): a string, or a list of strings in JSONL and parquet")
    refusal: str | None = Field(None, description="contextual refusal; absent: `behaviors.default_refusal`")
    category: str | None = None
    id: str | None = Field(None, description="stable id; absent: a hash of the goal")


class BehaviorSource(Section):
    """Where behaviors come from: a path, a builtin set, or a Hugging Face data set."""

    path: Annotated[PathText, Outside.FILE] = Field(
        description="CSV, TSV, JSONL, JSON or parquet file, text file with a goal a line, each also compressed (.gz); folder "
        "of such, `FOLDER/train-*`; `builtin:NAME`, `public:NAME`, or `hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`"
    )
    format: Literal[
        "auto",
        "builtin",
        "harmbench",
        "advbench",
        "jailbreakbench",
        "strongreject",
        "simple_safety_tests",
        "ailuminate",
        "list",
        "table",
    ] = "auto"
    targets_path: Annotated[PathText | None, Outside.FILE] = Field(
        None, description="targets JSON, as HarmBench's: {BehaviorID or goal: string or list}"
    )
    refusals_path: Annotated[PathText | None, Outside.FILE] = Field(None, description="CSV with columns Behavior, Safe_Response")
    columns: Columns = Columns()
    where: Comparable = Field(
        {}, description="only rows whose column has this value, as in {label: safe} or {adversarial: false}"
    )
    limit: Positive | None = Field(None, description="first N behaviors only")
    targets_per_behavior: Positive | None = Field(None, description="first N targets of each behavior only")


class BehaviorsConfig(BehaviorSource):
    """Training behaviors, with the held-out and harmless sets beside them."""

    heldout: BehaviorSource
    over_refusal: BehaviorSource | None = Field(None, description="harmless look-alikes; only `goal` is read")
    harmless: BehaviorSource | None = Field(
        None,
        description="harmless requests with openings in the style of the targets: the sampler in-paints prompts for these too, "
        "which become retain rows, see training.retain.inpainted_share",
    )
    harmless_heldout: BehaviorSource | None = Field(
        None,
        description="others, never trained on: refusing what the sampler in-paints for them is over-refusal in its style",
    )
    refusal: Literal["contextual", "constant"] = Field(
        "contextual", description="contextual: the data's own, where it has one; constant: `default_refusal` for every behavior"
    )
    default_refusal: str = "I'm sorry, but I can't help with that."
    near_duplicate: Fraction = Field(
        0.8,
        description="Jaccard of words, or character pairs in scripts without spaces, from which a training goal is dropped",
    )

    @field_validator("default_refusal")
    @classmethod
    def _with_text(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("an empty refusal has no log-probability: write a sentence, or leave the field out")
        return value


class GenerationConfig(Section):
    """How many candidates, and how they are written."""

    samples_per_target: Positive = Field(84, description="prompts for each (behavior, target)")
    harmless_samples_per_target: Positive = Field(1, description="the same for each (request, target) of behaviors.harmless")
    # Counts: an evaluation goes by the names of its shards, which hold this many rows each.
    rows_per_block: Positive = Field(64, description="rows of one shard, the unit that a crash can cost")
    max_error_rate: Annotated[Fraction, NO_EFFECT_ON_ROWS] = Field(
        0.05, description="share of failed rows past which the stage stops"
    )
    neutral_prompt: str | None = Field(
        None,
        min_length=1,
        description="a harmless prompt under which the target scores each response too, so that a prompt's gain is known; "
        "costs one more likelihood a candidate; absent: none",
    )


# Scores that a candidate has only where `generation.neutral_prompt` is set.
GAINS = ("gain", "judge_then_gain")


class SelectionConfig(Section):
    """Which prompts are trained on."""

    source: Literal["candidates", "goals", "mixture"] = Field(
        "candidates",
        description="candidates: the best in-painted prompts (DAT); goals: the behaviors' own requests, each with all its "
        "targets (CAT); mixture: both, an update of either kind at a time (MixAT)",
    )
    rewrites: Annotated[PathText | None, Outside.FILE] = Field(
        None,
        description="mixture only: table with columns goal and prompt, several a goal, rows of other goals passed over; "
        "absent: the candidates",
    )
    keep: Positive = Field(16, description="candidates kept for each behavior")
    score: Literal["judge", "loglik", "judge_then_loglik", "gain", "judge_then_gain", "random"] = Field(
        "judge_then_loglik",
        description="what ranks them: the judge's score, the target's mean log p(y | x), or its gain over log p(y | "
        "generation.neutral_prompt), which does not favor responses that are likely anyway; random: by the row's id, which "
        "knows nothing of its prompt; the same draws under each seed, whose prompts differ (the paper's ablation)",
    )
    min_target_logprob: Annotated[float | None, NO_LOWER_LIMIT] = Field(
        None, description="floor of the target's mean log p(y | x), nats a token: a prompt below it is dropped"
    )
    min_goal_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = Field(
        None,
        description="floor of the cosine between prompt and goal under `encoder`: a prompt below it is off the goal, and dropped",
    )
    max_goal_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = Field(
        None,
        description="ceiling of the same cosine: a prompt at or above it nearly copies the goal, asks what the goal itself does, "
        "and is dropped; include_original adds the goal all the same",
    )
    off_goal: Literal["drop", "retain"] = Field(
        "drop",
        description="what becomes of prompts below min_goal_similarity: retain lets those that are harmless join the retain set, "
        "see training.retain.inpainted_share",
    )
    only_harmful: bool = Field(
        False,
        description="drop candidates whose answer the judge does not call harmful: in later rounds those that no longer "
        "break the model",
    )
    earlier_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="from the second round on: share of its training set that is drawn from those of the rounds before"
    )
    include_original: bool = Field(False, description="add the behavior's own goal as a prompt")
    goal_without_prompt: bool = Field(
        False, description="a behavior of which no candidate was kept is trained on by its own goal, and named"
    )
