"""Training sets without a sampler: goals, and goals mixed with rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.data import BehaviorsConfig, BehaviorSource
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.study import candidates_mark, read_study
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import RunDir, rewrites_folder
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.shards import read_file, read_table, write_file
from dat_ray.errors import InputError, ShardError
from dat_ray.generation.goals import goal_rows, rewrite_rows
from dat_ray.generation.select import needs_candidates, select, selection_lines, trains_on_candidates
from tests.plain_demo import PLAIN_ARMS

PARAPHRASES = "builtin:demo-train-paraphrases"


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
    found = rewrite_rows(behaviors(), str(table))
    rows = found.table.to_pylist()
    assert (found.rows, found.passed_over) == (3, 0)
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
        ("goal,prompt\nElse,x\nDo that,x\n", "none of the 2 rows of .* rewrites a goal that is trained on: write the goals of"),
        ("goal,prompt\nDo it, \n", "row 1 .* lacks a text"),
    ],
)
def test_a_bad_table_of_rewrites_is_named(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "rewrites.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        rewrite_rows(behaviors(), str(table))


def test_rewrites_of_goals_that_are_not_trained_on_are_passed_over_and_counted(tmp_path: Path) -> None:
    table = tmp_path / "rewrites.csv"
    # A goal that is held out, one that is trained on, one that the behaviors do not hold.
    table.write_text("goal,prompt\nElse,x\nDo it,Please\nDo that,y\n")
    cfg, run = recipe(source="mixture", rewrites=str(table)), RunDir(str(tmp_path / "run"))
    write_file(run.behaviors, behaviors())
    for _ in range(2):
        [line] = selection_lines(cfg.selection, select(run, cfg))
        assert line.startswith("2 of 3 rewrites are passed over: their goal is not trained on (cut by behaviors.limit,")
    assert [row["prompt"] for row in read_table(rewrites_folder(run, 0)).to_pylist()] == ["Please"]

    table.write_text("goal,prompt\nDo it,Please\n")
    assert selection_lines(cfg.selection, select(run, cfg)) == []


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


def test_the_builtin_paraphrases_come_with_each_target_of_their_goals() -> None:
    cfg = BehaviorsConfig(path="builtin:demo-train", heldout=BehaviorSource(path="builtin:demo-heldout"))
    table = load_behaviors(cfg).table
    rows, goals = rewrite_rows(table, PARAPHRASES).table.to_pylist(), goal_rows(table).to_pylist()
    assert len({row["behavior_id"] for row in rows}) == 115
    assert {row["rank"] for row in rows} == {0}
    # Goals and paraphrases differ in the prompt alone, so that an arm on both has no other targets than an arm on the goals.
    assert [(row["behavior_id"], row["target"], row["refusal"]) for row in rows] == [
        (row["behavior_id"], row["target"], row["refusal"]) for row in goals
    ]
    assert all(row["prompt"] != goal["prompt"] for row, goal in zip(rows, goals, strict=True))


def test_with_fewer_goals_the_builtin_paraphrases_of_the_others_are_passed_over() -> None:
    cfg = BehaviorsConfig(path="builtin:demo-train", limit=8, heldout=BehaviorSource(path="builtin:demo-heldout"))
    table = load_behaviors(cfg).table
    found = rewrite_rows(table, PARAPHRASES)
    assert (found.rows, found.passed_over) == (115, 107)
    assert found.table["behavior_id"].to_pylist() == goal_rows(table)["behavior_id"].to_pylist()


def test_the_mixture_of_the_demos_arms_trains_on_goals_and_hand_written_paraphrases(tmp_path: Path) -> None:
    whole = {run.model: run.recipe for run in read_study("demo-arms", []).runs}
    assert whole["mixat@1"].selection.rewrites == PARAPHRASES
    assert not trains_on_candidates(whole["mixat@1"].selection)
    # It retains what the other arms do, prompts for harmless requests among it, which are drawn once for all.
    assert needs_candidates(whole["mixat@1"])
    assert candidates_mark(whole["mixat@1"]) == candidates_mark(whole["dat@1"]) == candidates_mark(whole["cat@1"])

    cfg = {run.model: run.recipe for run in read_study("demo-arms", PLAIN_ARMS).runs}["mixat@1"]
    run = RunDir(str(tmp_path))
    write_file(run.behaviors, load_behaviors(cfg.behaviors).table)
    assert select(run, cfg).kept == 115
    goals, rewrites = (
        read_table(folder, fingerprint=fingerprint(cfg)).to_pylist() for folder in (run.training_set(0), rewrites_folder(run, 0))
    )
    asked = read_file(run.behaviors)
    assert [row["prompt"] for row in rewrites] == [row["prompt"] for row in rewrite_rows(asked, PARAPHRASES).table.to_pylist()]
    assert len(rewrites) == len(goals) == 115
    assert not {row["prompt"] for row in rewrites} & {row["prompt"] for row in goals}
