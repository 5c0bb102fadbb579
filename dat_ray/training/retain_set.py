"""The retain set: harmless prompts with the base model's own answers, on which fine-tuning should change nothing.

Those of a table and, where the recipe asks for them, those that the sampler drew (`dat_ray.generation.retain_prompts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.language import english_rules_read
from dat_ray.data.retain import load_retain
from dat_ray.data.row_types import Row
from dat_ray.data.rundir import FIRST_ROUND, RunDir, retain_prompts_folder
from dat_ray.data.schemas import RETAIN
from dat_ray.data.shards import has_manifest, join, read_manifest, read_table, write_manifest, write_shard
from dat_ray.errors import DatError
from dat_ray.models.identity import check_weights, models_of

RETAIN_FILE = "retain.parquet"


@dataclass(frozen=True)
class RetainReport:
    """What became of the retain rows.

    Attributes:
        rows: kept, the in-painted ones among them.
        written: of the prompts without a response, how many the base model answered.
        dropped: rows that `keep` refused or whose response is empty.
        skipped: the set was there already, or the recipe has none; the counts other than `rows` are then unknown and 0.
        unread: kept rows with a response in a script that rules of refusal cannot read.
        inpainted: kept rows that a sampler drew.
        wanted: as many of those as `training.retain.inpainted_share` asks for.
    """

    rows: int
    written: int
    dropped: int
    skipped: bool
    unread: int = 0
    inpainted: int = 0
    wanted: int = 0


def retain_folder(run: RunDir, round_index: int) -> str:
    """Where a round's retain set lies, with a manifest of its own."""
    return join(run.training_set(round_index), "retain")


def prepare_retain(
    recipe: Recipe,
    run: RunDir,
    complete: Callable[[list[str]], list[str]],
    keep: Callable[[str, str], bool] = lambda prompt, response: True,
    round_index: int = FIRST_ROUND,
) -> RetainReport:
    """Writes the round's retain set, unless it is there.

    Args:
        recipe: its `training.retain` section.
        run: run directory.
        complete: the base model's greedy answers to prompts, one each, in order; not called without need.
        keep: whether a (prompt, response) is fit to be retained. An answer that refuses is not: keeping it
            would teach refusals of harmless prompts.
        round_index: whose retain set.

    Raises:
        DatError: no row is left, or `complete` gave another number of answers than there were prompts.
        ShardError: a retain set of another recipe is there.
    """
    folder, mark = retain_folder(run, round_index), run.fingerprint_of(recipe)
    if has_manifest(folder):
        return RetainReport(read_manifest(folder, fingerprint=mark).rows, written=0, dropped=0, skipped=True)
    if recipe.training.retain is None:
        return RetainReport(rows=0, written=0, dropped=0, skipped=True)
    rows = load_retain(recipe.training.retain)
    missing = [row for row in rows if row.response is None]
    if missing:
        check_weights(run.root, models_of(recipe, "target"))
    answers = complete([row.prompt for row in missing]) if missing else []
    if len(answers) != len(missing):
        raise DatError(f"the base model gave {len(answers)} answers to {len(missing)} retain prompts")
    written = {row.retain_id: answer for row, answer in zip(missing, answers, strict=True)}
    kept = []
    for row in rows:
        response = (written[row.retain_id] if row.response is None else row.response).strip()
        if response and keep(row.prompt, response):
            kept.append({"retain_id": row.retain_id, "prompt": row.prompt, "response": response, "source": row.source})
    inpainted, wanted = _inpainted(recipe, run, keep, len(kept), round_index)
    kept += inpainted
    if not kept:
        raise DatError(f"none of the {len(rows)} retain rows is left: all were empty or refused; see training.retain.path")
    write_manifest(folder, [write_shard(folder, RETAIN_FILE, pa.Table.from_pylist(kept, schema=RETAIN))], mark)
    unread = sum(not english_rules_read(row["response"]) for row in kept)
    dropped = len(rows) + len(inpainted) - len(kept)
    return RetainReport(len(kept), len(written), dropped, False, unread, len(inpainted), wanted)


def _inpainted(
    recipe: Recipe, run: RunDir, keep: Callable[[str, str], bool], others: int, round_index: int
) -> tuple[list[Row], int]:
    """The rows (schema RETAIN) that a sampler drew, and how many there should be beside the others."""
    assert recipe.training.retain is not None
    share = recipe.training.retain.inpainted_share
    wanted = round(others * share / (1.0 - share))
    if not wanted:
        return [], 0
    folder = retain_prompts_folder(run, round_index)
    fit = read_table(folder, fingerprint=run.fingerprint_of(recipe)).to_pylist()
    return [row for row in fit if keep(row["prompt"], row["response"])][:wanted], wanted
