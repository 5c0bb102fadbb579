"""The rule for prompts that missed a harmful goal, held against those that were read."""

from __future__ import annotations

import json
from pathlib import Path

from dat_ray.config.loading import load_recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.generation.retain_prompts import REASONS, retain_prompts

LABELS = Path(__file__).parents[3] / "studies" / "labels" / "off_goal_prompts.jsonl"
RECIPE = load_recipe("demo", ["selection.off_goal=retain"])


def test_it_lets_those_pass_that_the_file_says_of_which_few_ask_for_harm() -> None:
    behaviors = load_behaviors(RECIPE.behaviors).table.to_pylist()
    goals = {row["goal"]: row for row in behaviors if row["split"] == "train"}
    read = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    candidates = [
        {
            **goals[row["goal"]],
            "candidate_id": row["id"],
            "prompt": row["prompt"],
            "completion": "An answer",
            "error": None,
            "goal_similarity": 0.1,
            "training_goal_similarity": row["training_goal_similarity"],
            "harmless_similarity": row["harmless_similarity"],
        }
        for row in read
    ]
    found = retain_prompts(candidates, behaviors, RECIPE)
    assert set(found.table["retain_id"].to_pylist()) == {row["id"] for row in read if row["fit"]}
    assert found.dropped["piece of a harmful word"] > 0
    assert list(found.dropped) == list(REASONS)
    fit = [row for row in read if row["fit"]]
    assert len(fit) >= 100
    for reader in ("first_reader", "strict_reader"):
        assert sum(row[reader] == "harmful" for row in fit) <= 0.02 * len(fit)
