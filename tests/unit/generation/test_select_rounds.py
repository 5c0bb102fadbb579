"""Which prompts a later round trains on: those that still break the model, and a share of what earlier rounds kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.shards import read_table, write_manifest, write_shard
from dat_ray.errors import DatError
from dat_ray.generation.select import select, selection_lines
from tests.plain_demo import PLAIN
from tests.unit.generation.test_select import candidate, table

ROUNDS = {"rounds": 3, "selection": {"keep": 2, "only_harmful": True, "earlier_share": 0.5, "include_original": False}}


def rounds_recipe(**changes: Any) -> Recipe:
    tree = load_recipe("demo", PLAIN).model_dump(mode="json")
    sections = {name: {**tree[name], **value} if isinstance(value, dict) else value for name, value in (ROUNDS | changes).items()}
    return Recipe.model_validate(tree | sections)


def drawn(run: RunDir, recipe: Recipe, index: int, prompts: Sequence[tuple[str, str, str]]) -> None:
    """Candidates of a round: (behavior, prompt, verdict) each."""
    rows = [
        candidate(f"r{index}-{at}", prompt, 1.0 - at / 100, behavior_id=behavior, verdict=verdict)
        for at, (behavior, prompt, verdict) in enumerate(prompts)
    ]
    shard = write_shard(run.candidates(index), "part-0.parquet", table(*rows))
    write_manifest(run.candidates(index), [shard], fingerprint(recipe))


def kept(run: RunDir, index: int) -> list[tuple[str, str]]:
    return [(row["behavior_id"], row["prompt"]) for row in read_table(run.training_set(index)).to_pylist()]


def test_a_later_round_keeps_what_still_breaks_the_model_and_a_share_of_earlier_rows(tmp_path: Path) -> None:
    recipe = rounds_recipe()
    run = open_run(str(tmp_path / "run"), recipe, resume=False)
    drawn(run, recipe, 0, [(f"b{at}", f"first {at}", "harmful") for at in range(4)])
    drawn(run, recipe, 1, [("b0", "second 0", "harmful"), ("b1", "second 1", "not_harmful"), ("b2", "First 2!", "harmful")])
    drawn(run, recipe, 2, [("b0", "third 0", "not_harmful")])
    assert select(run, recipe, 0).earlier == 0
    second = select(run, recipe, 1)
    # Two new ones, and as many of the first round: none of them a prompt that is there again.
    assert (second.kept, second.earlier) == (4, 2)
    new, earlier = kept(run, 1)[:2], kept(run, 1)[2:]
    assert new == [("b0", "second 0"), ("b2", "First 2!")]
    assert set(earlier) < {("b0", "first 0"), ("b1", "first 1"), ("b3", "first 3")}
    # Nothing breaks the model any more: what is left are the rows of before, each once.
    third = select(run, recipe, 2)
    assert (third.kept, third.earlier) == (5, 5)
    assert sorted(kept(run, 2)) == [
        ("b0", "first 0"),
        ("b0", "second 0"),
        ("b1", "first 1"),
        ("b2", "First 2!") if ("b2", "First 2!") in kept(run, 2) else ("b2", "first 2"),
        ("b3", "first 3"),
    ]
    assert selection_lines(recipe.selection, third)[0] == "5 of 5 rows are of earlier rounds"
    # The draw is the recipe's: again, and in another directory.
    again = open_run(str(tmp_path / "again"), recipe, resume=False)
    drawn(again, recipe, 0, [(f"b{at}", f"first {at}", "harmful") for at in range(4)])
    drawn(again, recipe, 1, [("b0", "second 0", "harmful"), ("b1", "second 1", "not_harmful"), ("b2", "First 2!", "harmful")])
    select(again, recipe, 0)
    select(again, recipe, 1)
    assert kept(again, 1) == kept(run, 1)


def test_without_earlier_rows_a_round_that_breaks_nothing_is_told(tmp_path: Path) -> None:
    recipe = rounds_recipe(selection={"only_harmful": True, "include_original": False})
    run = open_run(str(tmp_path / "run"), recipe, resume=False)
    drawn(run, recipe, 0, [("b0", "first", "harmful")])
    drawn(run, recipe, 1, [("b0", "second", "not_harmful")])
    select(run, recipe, 0)
    with pytest.raises(DatError, match=r"kept none of 1 candidates \(harmless 1\)"):
        select(run, recipe, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selection": {"source": "goals"}}, "rounds 3 draws new prompts in each, and selection.source goals draws none"),
        ({"selection": {"source": "mixture", "rewrites": "x.csv"}}, "selection.rewrites draws none"),
        ({"rounds": 1}, "selection.earlier_share is of rounds after the first"),
    ],
)
def test_rounds_that_draw_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        rounds_recipe(**changes)
