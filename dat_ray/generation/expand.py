"""Behaviors become rows: one for each prompt to draw, with its id, its length and its seed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from dat_ray.config.schema import Recipe, SamplerConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.schemas import CANDIDATES
from dat_ray.errors import InputError

# What changes how fast prompts are drawn, or on which engine, but not the law they follow.
NOT_IN_LAW = frozenset({"backend", "batch_size", "max_batched_tokens", "likelihood_samples"})


def sampler_fingerprint(cfg: SamplerConfig) -> str:
    """16 hex digits that change with the law p_diff(x | y) that the settings describe."""
    law = cfg.model_dump(mode="json", exclude=set(NOT_IN_LAW))
    return row_id(*(part for key in sorted(law) for part in (key, repr(law[key]))))


def draw_prompt_tokens(lengths: tuple[int, ...], seed: int) -> int:
    """One of the prompt lengths, uniformly, as a function of the row's seed alone."""
    return lengths[seed_from_id(row_id("prompt_tokens", seed)) % len(lengths)]


def _draw_other(targets: list[str], own: str, seed: int) -> str | None:
    """Another behavior's target, uniformly, as a function of the row's seed; None where every one is the same."""
    different = [target for target in targets if target != own]
    return different[seed_from_id(row_id("other_target", seed)) % len(different)] if different else None


def expand(behaviors: pa.Table, recipe: Recipe) -> pa.Table:
    """The rows of one round: behaviors of split `train` x targets x samples.

    No row is added after this, so that ids stay unique through the model stages. `recipe.seed` enters a row's seed but
    not its id: another seed draws other prompts for the same rows.

    Args:
        behaviors: BEHAVIORS, one row a (behavior, target).
        recipe: gives round, seed, sampler and `generation.samples_per_target`.

    Returns:
        CANDIDATES, with all that a model will fill in null.

    Raises:
        InputError: no training behavior, or two rows with one id.
    """
    train = behaviors.filter(pc.field("split") == "train").to_pylist()
    if not train:
        raise InputError("behaviors.path", recipe.behaviors.path, "holds no training behavior: give a set with at least one")
    sampler = sampler_fingerprint(recipe.sampler)
    others: dict[str, list[str]] = {}
    if recipe.sampler.likelihood_samples:
        for one in {row["behavior_id"] for row in train}:
            others[one] = sorted({row["target"] for row in train if row["behavior_id"] != one})
    rows = []
    for behavior in train:
        for sample in range(recipe.generation.samples_per_target):
            identifier = row_id(
                behavior["behavior_id"], behavior["target_index"], behavior["target"], recipe.round, sample, sampler
            )
            seed = seed_from_id(row_id(recipe.seed, identifier))
            rows.append(
                {
                    "candidate_id": identifier,
                    "behavior_id": behavior["behavior_id"],
                    "target_index": behavior["target_index"],
                    "round": recipe.round,
                    "sample_index": sample,
                    "goal": behavior["goal"],
                    "target": behavior["target"],
                    "other_target": _draw_other(others.get(behavior["behavior_id"], []), behavior["target"], seed),
                    "refusal": behavior["refusal"],
                    "prompt_tokens": draw_prompt_tokens(recipe.sampler.prompt_tokens, seed),
                    "seed": seed,
                    "sampler": sampler,
                }
            )
    table = pa.Table.from_pylist(rows, schema=CANDIDATES)
    if pc.count_distinct(table["candidate_id"]).as_py() != table.num_rows:
        pairs = [(row["behavior_id"], row["target_index"]) for row in train]
        twice = next((pair for pair in pairs if pairs.count(pair) > 1), pairs[0])
        raise InputError("behaviors.path", recipe.behaviors.path, f"behavior {twice[0]} has target {twice[1]} twice: remove one")
    return table
