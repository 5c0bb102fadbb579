"""Training sets without a sampler: goals, and goals mixed with rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, rewrites_folder
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.shards import read_table, write_file
from dat_ray.errors import InputError, ShardError
from dat_ray.generation.goals import goal_rows, rewrite_rows
from dat_ray.generation.select import needs_candidates, select


def behaviors() -> pa.Table:
    rows = [
        {
            "behavior_id": f"b{number}",
            "goal": goal,
            "category": None,
            "source": "t",
            "split": split,
            "target_index": index,
            "target": f"Sure, {number}.{index}",
            "refusal": f"No {number}",
        }
        for number, (goal, split, targets) in enumerate(
            [("Do a thing", "train", 2), ("Do it", "train", 1), ("Else", "heldout", 2)]
        )
        for index in range(targets)
    ]
    return pa.Table.from_pylist(rows, schema=BEHAVIORS)


def recipe(**selection: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none"},
            "target": {"model": "none"},
            "selection": selection,
            "training": {"retain_rows": 0, "retain_weight": 0.0},
        }
    )


def test_each_training_goal_comes_with_each_of_its_targets() -> None:
    rows = goal_rows(behaviors()).to_pylist()
    assert [(row["behavior_id"], row["prompt"], row["target"], row["refusal"]) for row in rows] == [
        ("b0", "Do a thing", "Sure, 0.0", "No 0"),
        ("b0", "Do a thing", "Sure, 0.1", "No 0"),
        ("b1", "Do it", "Sure, 1.0", "No 1"),
    ]
    assert len({row["candidate_id"] for row in rows}) == 3


def test_a_rewrite_comes_with_each_target_of_its_goal(tmp_path: Path) -> None:
    table = tmp_path / "rewrites.csv"
    table.write_text('goal,prompt\n"do a THING!",Would you do a thing?\nDo it,Please\nDo a thing,Once more\n')
    rows = rewrite_rows(behaviors(), str(table)).to_pylist()
    assert [(row["prompt"], row["target"], row["rank"]) for row in rows] == [
        ("Would you do a thing?", "Sure, 0.0", 0),
        ("Would you do a thing?", "Sure, 0.1", 0),
        ("Please", "Sure, 1.0", 0),
        ("Once more", "Sure, 0.0", 1),
        ("Once more", "Sure, 0.1", 1),
    ]
    assert len({row["candidate_id"] for row in rows}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("goal,text\nDo it,x\n", "has no column 'prompt'"),
        ("goal,prompt\nElse,x\n", "row 1 .* rewrites a goal that is not trained on"),
        ("goal,prompt\nDo it, \n", "row 1 .* lacks a text"),
    ],
)
def test_a_bad_table_of_rewrites_is_named(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "rewrites.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        rewrite_rows(behaviors(), str(table))


def test_goals_need_no_candidates_and_a_mixture_keeps_its_rewrites_apart(tmp_path: Path) -> None:
    table = tmp_path / "rewrites.csv"
    table.write_text("goal,prompt\nDo it,Please\n")
    for name, selection, rewrites in (
        ("goals", {"source": "goals"}, 0),
        ("mixture", {"source": "mixture", "rewrites": str(table)}, 1),
    ):
        cfg, run = recipe(**selection), RunDir(str(tmp_path / name))
        write_file(run.behaviors, behaviors())
        assert not needs_candidates(cfg)
        report = select(run, cfg)
        assert (report.kept, report.behaviors, report.skipped) == (3, 2, False)
        assert read_table(run.training_set(0), fingerprint=fingerprint(cfg)).num_rows == 3
        if rewrites:
            assert read_table(rewrites_folder(run, 0)).num_rows == rewrites
        assert select(run, cfg).skipped


def test_a_mixture_without_a_table_rewrites_with_candidates(tmp_path: Path) -> None:
    cfg, run = recipe(source="mixture"), RunDir(str(tmp_path))
    write_file(run.behaviors, behaviors())
    assert needs_candidates(cfg)
    with pytest.raises(ShardError, match="candidates"):
        select(run, cfg)


def test_rewrites_are_read_with_a_mixture_only() -> None:
    with pytest.raises(ValueError, match=r"selection.rewrites is read only with source mixture, not goals"):
        recipe(source="goals", rewrites="x.csv")
