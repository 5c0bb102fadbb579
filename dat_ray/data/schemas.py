"""The tables of a run directory. The only place that names their columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = 2


def _schema(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns])


_STR, _I32, _I64, _F64 = pa.string(), pa.int32(), pa.int64(), pa.float64()

# Splits of behaviors: of those of training, prompts are in-painted before it; the others are for evaluations alone.
TRAIN, HARMLESS = "train", "harmless"
HELD_OUT, LOOK_ALIKES, HARMLESS_HELD_OUT = "heldout", "over_refusal", "harmless_heldout"

# One row a (behavior, target); rows of split "over_refusal" have an empty target and refusal.
BEHAVIORS = _schema(
    ("behavior_id", _STR, False),
    ("goal", _STR, False),
    ("category", _STR, True),
    ("source", _STR, False),
    ("split", _STR, False),
    ("target_index", _I32, False),
    ("target", _STR, False),
    ("refusal", _STR, False),
)

# What determines a candidate, known before any model runs.
REQUESTS = _schema(
    ("candidate_id", _STR, False),
    ("behavior_id", _STR, False),
    ("target_index", _I32, False),
    ("round", _I32, False),
    ("sample_index", _I32, False),
    ("goal", _STR, False),
    ("target", _STR, False),
    # Another behavior's target, that a prompt's likelihood is compared under; null where none is asked for.
    ("other_target", _STR, True),
    ("refusal", _STR, False),
    ("prompt_tokens", _I32, False),
    ("seed", _I64, False),
    ("sampler", _STR, False),
    # `train`, or `harmless` where the prompt is drawn for a harmless request; null in rounds of older versions, all `train`.
    ("split", _STR, True),
)

CANDIDATES = pa.schema(
    [
        *REQUESTS,
        pa.field("prompt", _STR),
        pa.field("nfe", _I32),
        pa.field("sample_logprob", _F64),
        # Bound on log p(x | y), its standard error, and the same bound given `other_target`, in nats.
        pa.field("log_likelihood", _F64),
        pa.field("log_likelihood_error", _F64),
        pa.field("other_log_likelihood", _F64),
        pa.field("completion", _STR),
        pa.field("target_model", _STR),
        pa.field("adapter", _STR),
        pa.field("target_logprob", _F64),
        # Mean log p(y | generation.neutral_prompt), nats a token, and the cosine of prompt and goal; null where not asked for.
        pa.field("neutral_target_logprob", _F64),
        pa.field("goal_similarity", _F64),
        # The largest cosine of the prompt with any training goal, and with any harmless request; null where not asked for.
        pa.field("training_goal_similarity", _F64),
        pa.field("harmless_similarity", _F64),
        pa.field("judge", _STR),
        pa.field("verdict", _STR),
        pa.field("score", _F64),
        pa.field("error", _STR),
    ]
)

TRAINING_SET = _schema(
    ("candidate_id", _STR, False),
    ("behavior_id", _STR, False),
    ("prompt", _STR, False),
    ("target", _STR, False),
    ("refusal", _STR, False),
    ("score", _F64, True),
    ("target_logprob", _F64, True),
    ("goal_similarity", _F64, True),
    ("rank", _I32, False),
)

RETAIN = _schema(
    ("retain_id", _STR, False),
    ("prompt", _STR, False),
    ("response", _STR, False),
    ("source", _STR, False),
)

ATTEMPTS = _schema(
    ("attempt_id", _STR, False),
    ("model", _STR, False),
    ("attack", _STR, False),
    ("behavior_id", _STR, False),
    ("attempt_index", _I32, False),
    ("goal", _STR, False),
    ("prompt", _STR, True),
    ("completion", _STR, True),
    ("verdict", _STR, True),
    ("score", _F64, True),
    ("judge", _STR, True),
    ("seconds", _F64, True),
    ("model_calls", _I32, True),
    ("error", _STR, True),
    ("seed", _I64, True),  # of a sampled answer
    ("temperature", _F64, True),
    ("prefill", _STR, True),  # what the model's turn was made to begin with; not part of `completion`
    ("variant", _STR, True),  # tells attempts of one attack apart, such as the prompt's language
    ("judged_text", _STR, True),  # what the judges read, where it is not the completion: its translation
    ("second_judge", _STR, True),
    ("second_verdict", _STR, True),
    ("second_score", _F64, True),
    ("history", pa.list_(_STR), True),  # turns before the prompt, of the user and of the model in turn
    ("goal_similarity", _F64, True),  # cosine of the prompt and the goal, of prompts that a sampler drew
)

# What an attacker model wrote, raw: prompts of an attack, and answers translated back.
REWRITES = _schema(
    ("rewrite_id", _STR, False),
    ("request", _STR, False),
    ("text", _STR, True),
    ("seed", _I64, False),
    ("seconds", _F64, True),
    ("error", _STR, True),
)

# What a search with gradients found, one row a behavior.
SEARCHES = pa.schema(
    [
        pa.field("search_id", _STR, nullable=False),
        pa.field("model", _STR, nullable=False),
        pa.field("behavior_id", _STR, nullable=False),
        pa.field("prompts", pa.list_(_STR)),  # the ones to ask, in the order of the search
        pa.field("completion", _STR),  # of the embedding attack, whose prompt is no text
        pa.field("losses", pa.list_(_F64)),  # nats a token of the target, at the start and after each step
        pa.field("model_calls", _I32),
        pa.field("seconds", _F64),
        pa.field("error", _STR),
        pa.field("prompt_calls", pa.list_(_I32)),  # of `model_calls`, those that had been made when each prompt was known
        # Of each step: candidates whose text was looked at, and those that came back from it token by token.
        pa.field("drawn", pa.list_(_I32)),
        pa.field("survived", pa.list_(_I32)),
        pa.field("attack", _STR),
    ]
)

# How likely a harmful response is after one prompt, in nats a token, as it is and under the attack of training; not clipped.
RISKS = _schema(
    ("risk_id", _STR, False),
    ("model", _STR, False),
    ("prompt_set", _STR, False),
    ("behavior_id", _STR, False),
    ("source_id", _STR, False),  # of the candidate, or of the question, that the prompt comes from
    ("variant", _STR, True),  # of prompts that people wrote, such as their language
    ("prompt", _STR, False),
    ("target", _STR, False),
    ("is_goal", pa.bool_(), False),  # whether the prompt is the behavior's own goal
    ("plain", _F64, True),
    ("attacked", _F64, True),  # null where the attack has no steps
    ("error", _STR, True),
)

# Columns of any of these tables that hold most of its bytes: what models write and read, not goals and targets.
LONG_TEXT = frozenset({"prompt", "completion", "response", "request", "text", "judged_text", "history", "prompts"})


def for_training_goals(candidates: pa.Table) -> pa.Table:
    """The rows of a round (schema CANDIDATES) that were drawn for training goals, and not for harmless requests."""
    if "split" not in candidates.column_names:
        return candidates
    return candidates.filter(pc.fill_null(pc.not_equal(candidates["split"], HARMLESS), True))
