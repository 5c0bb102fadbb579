"""Writes what a round's drawn prompts are like beside them."""

from __future__ import annotations

import json

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import FIRST_ROUND, RunDir
from dat_ray.data.schemas import for_training_goals
from dat_ray.data.shards import exists, join, read_table, write_bytes
from dat_ray.measures.prompt_statistics import diagnose

FILE = "diagnostics.json"


def write_diagnostics(recipe: Recipe, run: RunDir, round_index: int = FIRST_ROUND) -> None:
    """Writes the diagnostics of a round's candidates beside them, as JSON.

    A file that is there is of these very candidates, which never change once their manifest is written.
    """
    root = run.candidates(round_index)
    if exists(join(root, FILE)):
        return
    config = recipe.evaluation
    found = diagnose(
        for_training_goals(read_table(root)).to_pylist(),
        confidence=config.confidence,
        resamples=config.bootstrap,
        seed=recipe.seed,
    )
    facts = {"round": round_index, "confidence": config.confidence, "interval_unit": "behavior", **found.as_dict()}
    write_bytes(join(root, FILE), (json.dumps(facts, indent=1) + "\n").encode())
