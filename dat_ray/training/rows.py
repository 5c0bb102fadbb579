"""From the run directory's tables to tokenized training rows."""

from __future__ import annotations

from dataclasses import replace

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.training import RetainConfig, TrainingConfig
from dat_ray.data.rundir import RunDir, rewrites_folder
from dat_ray.data.shards import has_manifest, read_manifest, read_table
from dat_ray.errors import DatError
from dat_ray.models.chat import ChatFormat, Encoded
from dat_ray.training.batches import HarmfulRow
from dat_ray.training.loop import TrainingRows, check_rows
from dat_ray.training.retain_set import retain_folder


def harmful_row(chat: ChatFormat, prompt: str, target: str, refusal: str, cfg: TrainingConfig) -> HarmfulRow:
    """One prompt with both responses, after the same prompt tokens.

    A prompt too long for one of the responses is cut for both, since one perturbation serves both. The harmful response,
    an opening, never ends the turn: the attack would learn to say it and stop.
    """
    harmful = chat.encode(prompt, target, cfg.max_tokens)
    refused = chat.encode(prompt, refusal, cfg.max_tokens, closed=cfg.end_of_turn == "refusal")
    shorter = min(harmful, refused, key=lambda row: row.user_span[1])
    return HarmfulRow(_after(shorter, harmful), _after(shorter, refused))


def _after(prompt: Encoded, response: Encoded) -> Encoded:
    low, high = response.response_span
    start = prompt.response_span[0]
    ids = [*prompt.ids[:start], *response.ids[low:high]]
    return replace(prompt, ids=ids, response_span=(start, start + high - low))


def load_rows(recipe: Recipe, run: RunDir, chat: ChatFormat) -> TrainingRows:
    """Reads and tokenizes the round's training set and retain set.

    Raises:
        ShardError: a table is missing, altered, or of another recipe.
    """
    cfg, mark = recipe.training, fingerprint(recipe)

    def attacked(folder: str) -> list[HarmfulRow]:
        found = read_table(folder, fingerprint=mark).to_pylist()
        return [harmful_row(chat, row["prompt"], row["target"], row["refusal"], cfg) for row in found]

    harmful = attacked(run.training_set(recipe.round))
    rewrites = attacked(rewrites_folder(run, recipe.round)) if recipe.selection.source == "mixture" else []
    retain = []
    if cfg.retain_rows:
        assert cfg.retain is not None
        for row in read_table(retain_folder(run, recipe.round), fingerprint=mark).to_pylist():
            encoded = chat.encode(row["prompt"], row["response"], cfg.max_tokens)
            retain.append(_retained(encoded, cfg.retain))
    return TrainingRows(harmful, retain, rewrites)


def _retained(row: Encoded, cfg: RetainConfig) -> Encoded:
    """The row cut to its limit, with the span of the tokens on which the retain term acts."""
    low, high = row.response_span
    end = min(high, low + cfg.max_response_tokens)
    start = low if cfg.tokens == "response" else row.user_span[0]
    # Nothing predicts the first token of a row.
    return replace(row, ids=row.ids[:end], response_span=(max(start, 1), end))


def count_rows(recipe: Recipe, run: RunDir) -> tuple[int, int]:
    """Rows of the training set (rewrites included) and the retain set, from their manifests, checked against an update's needs.

    Raises:
        ShardError: a table is missing or of another recipe.
        DatError: not enough rows.
    """
    mark, folder = fingerprint(recipe), retain_folder(run, recipe.round)
    harmful = read_manifest(run.training_set(recipe.round), fingerprint=mark).rows
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
        rewrites = read_manifest(rewrites_folder(run, recipe.round), fingerprint=mark).rows
        for world in worlds:
            check_rows(recipe.training, rewrites, retain, world)
    return harmful, retain
