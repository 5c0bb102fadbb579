"""What will become of a recipe's training rows, as far as it can be told before anything has run."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.retain import RetainRow
from dat_ray.errors import InputError
from dat_ray.generation.goals import goal_rows
from dat_ray.generation.select import trains_on_candidates
from dat_ray.measures.style import StyleAuc, style_of
from dat_ray.models.chat import ChatFormat
from dat_ray.models.fit import Limits
from dat_ray.models.loading import load_tokenizer
from dat_ray.models.served import tokenizer_folder
from dat_ray.training.counts import sentences
from dat_ray.training.training_rows import check_kept, check_template, encode_harmful, encode_retain

# Retain rows that are tokenized for an answer within seconds.
RETAIN_ROWS = 1000


def rows_forecast(recipe: Recipe, behaviors: pa.Table, retain: Sequence[RetainRow]) -> str:
    """How many rows have room for responses, and how many responses will be cut, by the rule of training itself.

    Args:
        recipe: its `target`, `sampler`, `selection` and `training` sections.
        behaviors: BEHAVIORS.
        retain: the retain set.

    Raises:
        InputError: too few rows will be left for an update, or the target's template cannot be used.
    """
    folder = tokenizer_folder(recipe.target.model, "target.model", recipe.target.revision)
    chat = ChatFormat(load_tokenizer(folder, "target.model"), recipe.target)
    check_template(chat, recipe.training)
    parts = []
    if trains_on_candidates(recipe.selection):
        parts.append(_drawn(recipe, behaviors, chat))
    if recipe.selection.source != "candidates":
        count = encode_harmful(chat, goal_rows(behaviors).to_pylist(), recipe.training)[1]
        check_kept("harmful", count, recipe.training)
        parts += sentences({"harmful": count})
    if recipe.training.retain_rows:
        parts += _retained(recipe, retain, chat)
    return "; ".join(parts)


def measure_style(behaviors: pa.Table, retain: Sequence[RetainRow]) -> StyleAuc | None:
    """How far form alone tells training goals from retain prompts, the first of each; None with too few of either.

    Args:
        behaviors: BEHAVIORS.
        retain: the retain set.
    """
    goals = {row["behavior_id"]: row["goal"] for row in behaviors.to_pylist() if row["split"] == "train"}
    return style_of(list(goals.values()), [row.prompt for row in retain])


def _drawn(recipe: Recipe, behaviors: pa.Table, chat: ChatFormat) -> str:
    """Prompts that a sampler has yet to write: their lengths are known in its own tokens, about those of the target."""
    cfg, limits = recipe.training, Limits(recipe.training.max_tokens)
    template = sum(map(len, chat.segments()))
    lengths = recipe.sampler.prompt_tokens
    fitting = [length for length in lengths if limits.fit(template + length, 0) is not None]
    if not fitting:
        remedy = (
            f"prompts of {min(lengths)} tokens or more and {template} of the template leave no room for {limits.least} response "
            "tokens: raise it, or lower sampler.prompt_tokens"
        )
        raise InputError("training.max_tokens", cfg.max_tokens, remedy)
    longest, cut = max(fitting), []
    for kind in ("target", "refusal"):
        texts = [row[kind] for row in behaviors.to_pylist() if row["split"] == "train"]
        fits = [limits.fit(template + longest, len(chat.response_ids(text))) for text in texts]
        cut.append(f"{sum(fit is not None and fit.beyond_room > 0 for fit in fits)} of {len(texts)} {kind}s")
    too_long = f", those of {min(set(lengths) - set(fitting))} and more none" if len(fitting) < len(lengths) else ""
    room = cfg.max_tokens - template - longest
    return f"sampled prompts of {longest} tokens leave about {room} to a response{too_long}: {' and '.join(cut)} cut"


def _retained(recipe: Recipe, retain: Sequence[RetainRow], chat: ChatFormat) -> list[str]:
    """Sentences on the first rows of the retain set: those with a response, and those whose response has yet to be written."""
    first, cfg = retain[:RETAIN_ROWS], recipe.training
    assert cfg.retain is not None
    limits = Limits(cfg.max_tokens, cfg.retain.max_response_tokens)
    parts = []
    answered = [
        {"retain_id": row.retain_id, "prompt": row.prompt, "response": row.response} for row in first if row.response is not None
    ]
    kept = 0
    if answered:
        count = encode_retain(chat, answered, cfg)[1]
        kept += count.kept
        parts += sentences({"retain": count})
    waiting = [row.prompt for row in first if row.response is None]
    if waiting:
        lost = sum(limits.fit(len(chat.prompt_ids(prompt)), 0) is None for prompt in waiting)
        kept += len(waiting) - lost
        parts.append(f"{len(waiting):,} retain prompts without a response yet, {lost:,} of them too long for one")
    if len(first) < len(retain):
        parts.append(f"of {len(retain):,} retain rows the first {len(first):,} were looked at")
    elif kept < min(cfg.retain_rows, len(retain)):
        remedy = (
            f"{len(retain) - kept} of {len(retain)} retain prompts leave no room for {limits.least} response tokens: raise it"
        )
        raise InputError("training.max_tokens", cfg.max_tokens, remedy)
    return parts
