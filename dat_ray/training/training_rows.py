"""From the run directory's tables to tokenized training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.config.training import RetainConfig, TrainingConfig
from dat_ray.data.rundir import FIRST_ROUND, RunDir, rewrites_folder
from dat_ray.data.shards import has_manifest, read_manifest, read_table
from dat_ray.errors import DatError, InputError
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.models.fit import Limits
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.counts import ResponseCount, TableCount
from dat_ray.training.fine_tuning import TrainingRows, check_rows
from dat_ray.training.retain_set import retain_folder


def check_template(chat: ChatFormat, cfg: TrainingConfig) -> None:
    """Checks what every row asks of the target's chat template.

    Raises:
        InputError: the template leaves no room for any prompt, or ends no turn where a response is to end it.
    """
    chat.check_room(Limits(cfg.max_tokens))
    closed = ("refusal", "all", "retain") if cfg.retain_rows else ("refusal", "all")
    if cfg.end_of_turn in closed:
        chat.end_of_turn()


def harmful_row(chat: ChatFormat, prompt: str, target: str, refusal: str, cfg: TrainingConfig) -> HarmfulRow | None:
    """One prompt with both responses, after the same prompt tokens: one perturbation serves both.

    The prompt stays whole and each response is cut to the room behind it. The harmful response, an opening, ends the turn with
    `end_of_turn: all` alone: the attack learns to say it and stop.

    Returns:
        None where the prompt leaves too little room for a response.
    """
    limits = Limits(cfg.max_tokens)
    harmful = chat.encode(prompt, target, limits, closed=cfg.end_of_turn == "all")
    refused = chat.encode(prompt, refusal, limits, closed=cfg.end_of_turn in ("refusal", "all"))
    if harmful is None or refused is None:
        assert harmful is refused, "the prompt alone decides"
        return None
    return HarmfulRow(harmful, refused)


def load_rows(recipe: Recipe, run: RunDir, chat: ChatFormat, round_index: int = FIRST_ROUND) -> TrainingRows:
    """Reads and tokenizes the round's training set and retain set.

    Raises:
        ShardError: a table is missing, altered, or of another recipe.
        InputError: so many prompts leave no room for a response that an update cannot be filled.
    """
    cfg, mark = recipe.training, run.fingerprint_of(recipe)
    counts: dict[str, TableCount] = {}

    def attacked(name: str, folder: str) -> list[HarmfulRow]:
        rows, counts[name] = encode_harmful(chat, read_table(folder, fingerprint=mark).to_pylist(), cfg)
        check_kept(name, counts[name], cfg)
        return rows

    harmful = attacked("harmful", run.training_set(round_index))
    rewrites = attacked("rewrites", rewrites_folder(run, round_index)) if recipe.selection.source == "mixture" else []
    retain: list[Encoded] = []
    if cfg.retain_rows:
        # The base model's answers, in every round.
        table = read_table(retain_folder(run, FIRST_ROUND), fingerprint=mark).to_pylist()
        retain, counts["retain"] = encode_retain(chat, table, cfg)
        check_kept("retain", counts["retain"], cfg)
    return TrainingRows(harmful, retain, rewrites, counts)


def encode_harmful(
    chat: ChatFormat, table: Sequence[Mapping[str, Any]], cfg: TrainingConfig
) -> tuple[list[HarmfulRow], TableCount]:
    """The rows of a training set that have room for responses, and what became of the others.

    Args:
        chat: of the target.
        table: rows of schema TRAINING_SET.
        cfg: of the recipe.
    """
    rows = [harmful_row(chat, row["prompt"], row["target"], row["refusal"], cfg) for row in table]
    kept = [row for row in rows if row is not None]
    responses = {
        "target": ResponseCount.of(row.harmful for row in kept),
        "refusal": ResponseCount.of(row.refusal for row in kept),
    }
    count = _count([row["candidate_id"] for row in table], rows, responses, Limits(cfg.max_tokens))
    return kept, count


def encode_retain(chat: ChatFormat, table: Sequence[Mapping[str, Any]], cfg: TrainingConfig) -> tuple[list[Encoded], TableCount]:
    """The rows of a retain set that have room for a response, and what became of the others.

    Args:
        chat: of the target.
        table: rows of schema RETAIN.
        cfg: of the recipe, with a retain section.
    """
    assert cfg.retain is not None
    limits = Limits(cfg.max_tokens, cfg.retain.max_response_tokens)
    closed = cfg.end_of_turn in ("retain", "all")
    rows = [chat.encode(row["prompt"], row["response"], limits, closed=closed) for row in table]
    kept = [row for row in rows if row is not None]
    count = _count([row["retain_id"] for row in table], rows, {"response": ResponseCount.of(kept)}, limits)
    return [_retained(row, cfg.retain) for row in kept], count


def _count(
    ids: Sequence[str], rows: Sequence[HarmfulRow | Encoded | None], responses: dict[str, ResponseCount], limits: Limits
) -> TableCount:
    assert limits.tokens is not None
    left_out = tuple(identifier for identifier, row in zip(ids, rows, strict=True) if row is None)
    return TableCount(len(rows), left_out, responses, limits.tokens, limits.least)


def check_kept(name: str, count: TableCount, cfg: TrainingConfig) -> None:
    """Fails where rows were left out and too few are left; a table that had too few is the concern of `check_rows`.

    Raises:
        InputError: too few are left for an update.
    """
    field = "retain_rows" if name == "retain" else "harmful_rows"
    needed: int = getattr(cfg, field)
    if count.left_out and count.kept < needed:
        problem = f"{name} rows: {count.why_left_out()}; {count.kept} are left and an update needs {needed}"
        raise InputError("training.max_tokens", count.max_tokens, f"{problem}: raise it, or lower training.{field}")


def _retained(row: Encoded, cfg: RetainConfig) -> Encoded:
    """The row with the span of the tokens on which the retain term acts."""
    low, high = row.response_span
    start = low if cfg.tokens == "response" else row.user_span[0]
    # Nothing predicts the first token of a row.
    return replace(row, response_span=(max(start, 1), high))


def count_rows(recipe: Recipe, run: RunDir, round_index: int = FIRST_ROUND) -> tuple[int, int]:
    """Rows of the training set (rewrites included) and the retain set, from their manifests, checked against an update's needs.

    Rows whose prompts are too long are still among them: `load_rows`, which has a tokenizer, leaves those out and checks again.

    Raises:
        ShardError: a table is missing or of another recipe.
        DatError: not enough rows.
    """
    mark, folder = run.fingerprint_of(recipe), retain_folder(run, FIRST_ROUND)
    harmful = read_manifest(run.training_set(round_index), fingerprint=mark).rows
    retain = 0
    if recipe.training.retain_rows:
        if not has_manifest(folder):
            raise DatError(f"{folder} is missing: prepare the retain set before training")
        retain = read_manifest(folder, fingerprint=mark).rows
    pool = recipe.cluster.trainer
    worlds = range(pool.min_actors, pool.max_actors + 1)
    for world in worlds:
        check_rows(recipe.training, harmful, retain, world)
    if recipe.selection.source == "mixture":
        rewrites = read_manifest(rewrites_folder(run, round_index), fingerprint=mark).rows
        for world in worlds:
            check_rows(recipe.training, rewrites, retain, world)
    return harmful, retain
