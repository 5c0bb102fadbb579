"""Behaviors become rows: one for each prompt to draw, with its id, its length and its seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import draw_prompt_tokens, row_ids, seeds_from_ids
from dat_ray.data.rundir import FIRST_ROUND
from dat_ray.data.schemas import CANDIDATES, HARMLESS, TRAIN
from dat_ray.errors import InputError


def _draw_others(train: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[str | None]:
    """For each row another behavior's target, uniformly, as a function of the row's seed; None where every one is the same.

    Args:
        train: behaviors.
        seeds: of the rows, as many for each behavior.
    """
    samples, drawn = len(seeds) // len(train), []
    draws = seeds_from_ids(row_ids(("other_target",), seeds))
    of_behavior: dict[str, set[str]] = {}
    for row in train:
        of_behavior.setdefault(row["behavior_id"], set()).add(row["target"])
    for number, row in enumerate(train):
        foreign = set().union(*(targets for behavior, targets in of_behavior.items() if behavior != row["behavior_id"]))
        different = sorted(foreign - {row["target"]})
        for draw in draws[number * samples : (number + 1) * samples]:
            drawn.append(different[draw % len(different)] if different else None)
    return drawn


def expand(behaviors: pa.Table, recipe: Recipe, sampler: str, round_index: int = FIRST_ROUND) -> pa.Table:
    """The rows of one round: behaviors of the splits `train` and `harmless` x targets x samples.

    Later rounds draw nothing for harmless requests: the retain set is the first round's, whose answers the base model wrote.

    No row is added after this, so that ids stay unique through the model stages. `recipe.seed` enters a row's seed but
    not its id: another seed draws other prompts for the same rows.

    Args:
        behaviors: BEHAVIORS, one row a (behavior, target).
        recipe: gives the seed, the prompts' lengths and the samples for each target.
        sampler: fingerprint of the sampler that will draw the prompts, see `dat_ray.models.identity`.
        round_index: the round.

    Returns:
        CANDIDATES, with all that a model will fill in null.

    Raises:
        InputError: no training behavior, or two rows with one id.
    """
    splits = (TRAIN, HARMLESS) if round_index == FIRST_ROUND else (TRAIN,)
    parts = {split: behaviors.filter(pc.field("split") == split) for split in splits}
    if not parts[TRAIN].num_rows:
        raise InputError("behaviors.path", recipe.behaviors.path, "holds no training behavior: give a set with at least one")
    samples = {TRAIN: recipe.generation.samples_per_target, HARMLESS: recipe.generation.harmless_samples_per_target}
    table = pa.concat_tables(
        _requests(part, split, samples[split], recipe, sampler, round_index) for split, part in parts.items() if part.num_rows
    )
    if pc.count_distinct(table["candidate_id"]).as_py() != table.num_rows:
        pairs = [(row["behavior_id"], row["target_index"]) for part in parts.values() for row in part.to_pylist()]
        twice = next((pair for pair in pairs if pairs.count(pair) > 1), pairs[0])
        raise InputError("behaviors.path", recipe.behaviors.path, f"behavior {twice[0]} has target {twice[1]} twice: remove one")
    return table


def _requests(part: pa.Table, split: str, samples: int, recipe: Recipe, sampler: str, round_index: int) -> pa.Table:
    """Rows of one split, `samples` for each of its (behavior, target)."""
    asked = part.to_pylist()
    identifiers = [
        identifier
        for behavior in asked
        for identifier in row_ids(
            (behavior["behavior_id"], behavior["target_index"], behavior["target"], round_index), range(samples), (sampler,)
        )
    ]
    seeds = seeds_from_ids(row_ids((recipe.seed,), identifiers))
    rows = len(identifiers)
    compared = split == TRAIN and recipe.sampler.likelihood_samples
    # The behavior of each row: whole columns are taken at once, since a row at a time costs more than its hashes.
    behavior = pc.take(part, pa.array(np.repeat(np.arange(len(asked)), samples), pa.int32()))
    columns = {
        "candidate_id": identifiers,
        **{name: behavior[name] for name in ("behavior_id", "target_index", "goal", "target", "refusal", "split")},
        "round": np.full(rows, round_index),
        "sample_index": np.tile(np.arange(samples), len(asked)),
        "prompt_tokens": draw_prompt_tokens(recipe.sampler.prompt_tokens, seeds),
        "seed": seeds,
        "other_target": _draw_others(asked, seeds) if compared else [None] * rows,
        "sampler": pa.array([sampler]).take(pa.array(np.zeros(rows, np.int32))),
    }
    return pa.table(
        [
            _column(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
            for field in CANDIDATES
        ],
        schema=CANDIDATES,
    )


def _column(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
