from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.data import SelectionConfig
from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import CANDIDATES, TRAINING_SET
from dat_ray.data.shards import read_table, write_manifest, write_shard
from dat_ray.errors import DatError, ShardError
from dat_ray.generation.select import SelectionReport, choose, select, selection_lines


def candidate(identifier: str, prompt: str | None, score: float | None = 0.5, logprob: float | None = -1.0, **changes) -> dict:
    row = {
        "candidate_id": identifier,
        "behavior_id": "b0",
        "target_index": 0,
        "round": 0,
        "sample_index": 0,
        "goal": "bake a cake",
        "target": "Sure, here is how",
        "refusal": "No.",
        "prompt_tokens": 4,
        "seed": 1,
        "sampler": "s",
        "prompt": prompt,
        "verdict": "harmful",
        "score": score,
        "target_logprob": logprob,
        "error": None,
    }
    return {**row, **changes}


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=CANDIDATES)


def chosen(rows, **cfg) -> list[str]:
    return choose(table(*rows), SelectionConfig(**cfg)).table["candidate_id"].to_pylist()


FOUR = [
    candidate("1", "one", 0.9, -3.0),
    candidate("2", "two", 0.9, -2.0),
    candidate("3", "three", 0.1, -1.0),
    candidate("4", "four", 0.9, -2.0),
]


def test_ranking_by_each_score():
    assert chosen(FOUR, score="judge_then_loglik") == ["2", "4", "1", "3"]
    assert chosen(FOUR, score="judge") == ["1", "2", "4", "3"]
    assert chosen(FOUR, score="loglik") == ["3", "2", "4", "1"]


def test_at_random_neither_score_nor_likelihood_counts() -> None:
    # Ids are hashes: their order is one that nothing else goes with.
    mixed = [
        candidate(name, f"prompt {name}", score, likely)
        for name, score, likely in (("b", 0.1, -9.0), ("c", 1.0, 0.0), ("a", 0.5, -1.0))
    ]
    assert chosen(mixed, score="random") == ["a", "b", "c"]
    assert chosen(mixed, score="random", keep=1) == ["a"]


def test_the_best_k_of_each_behavior_are_kept_in_rank_order():
    rows = [*FOUR, candidate("5", "one", 0.2, -1.0, behavior_id="a9")]
    found = choose(table(*rows), SelectionConfig(keep=2))
    kept, dropped, without = found.table, found.dropped, found.without
    assert kept.schema.equals(TRAINING_SET)
    assert [(r["behavior_id"], r["candidate_id"], r["rank"]) for r in kept.to_pylist()] == [
        ("a9", "5", 0),
        ("b0", "2", 0),
        ("b0", "4", 1),
    ]
    assert dropped == {
        "error": 0,
        "unparsed": 0,
        "harmless": 0,
        "empty": 0,
        "leak": 0,
        "off_goal": 0,
        "copy": 0,
        "unlikely": 0,
        "duplicate": 0,
        "rank": 2,
    }
    assert without == ()


def test_what_cannot_be_trained_on_is_dropped_and_counted():
    rows = [
        candidate("1", None, None, None, verdict=None, error="sampler: no"),
        candidate("2", "fine", None, verdict="unparsed"),
        candidate("3", " ?!  "),
        candidate("4", "Say: sure -- here is HOW, please"),
        candidate("5", "unsure here is how"),  # "sure" is only part of a word
        candidate("6", "Hello, world", 0.2),
        candidate("7", "hello   WORLD!", 0.8),
    ]
    found = choose(table(*rows), SelectionConfig())
    kept, dropped = found.table, found.dropped
    assert kept["candidate_id"].to_pylist() == ["7", "5"]
    assert dropped == {
        "error": 1,
        "unparsed": 1,
        "harmless": 0,
        "empty": 1,
        "leak": 1,
        "off_goal": 0,
        "copy": 0,
        "unlikely": 0,
        "duplicate": 1,
        "rank": 0,
    }


def test_a_leak_is_found_in_scripts_without_spaces():
    target: dict[str, Any] = {"target": "当然可以，这是便条"}
    rows = [
        candidate("1", "请回答：当然可以这是便条！", **target),
        candidate("2", "请写一张便条", **target),
        candidate("3", "请写一张便条。", 0.1, **target),
    ]
    found = choose(table(*rows), SelectionConfig())
    kept, dropped = found.table, found.dropped
    assert kept["candidate_id"].to_pylist() == ["2"]
    assert (dropped["leak"], dropped["duplicate"]) == (1, 1)


def test_order_of_rows_does_not_matter():
    rows = [candidate(f"{i:02}", f"prompt {i % 7}", (i % 3) / 3, -(i % 5), behavior_id=f"b{i % 2}") for i in range(40)]
    first = choose(table(*rows), SelectionConfig(keep=3))
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    assert choose(table(*shuffled), SelectionConfig(keep=3)) == first


def test_a_missing_score_ranks_last():
    assert chosen([candidate("1", "x", None), candidate("2", "y", float("nan")), candidate("3", "z", 0.0)]) == ["3", "1", "2"]


def test_the_original_goal_is_added_once_a_behavior_after_the_kept_ones():
    rows = [
        candidate("1", "one", target_index=1, target="Of course"),
        candidate("2", "two", 0.1),
        candidate("3", "", behavior_id="empty", goal="tie a knot"),
    ]
    found = choose(table(*rows), SelectionConfig(keep=1, include_original=True))
    kept, without = found.table, found.without
    chosen_rows = [(r["behavior_id"], r["prompt"], r["target"], r["rank"], r["score"]) for r in kept.to_pylist()]
    assert chosen_rows == [
        ("b0", "one", "Of course", 0, 0.5),
        ("b0", "bake a cake", "Sure, here is how", 1, None),
        ("empty", "tie a knot", "Sure, here is how", 0, None),
    ]
    assert without == ("empty",)
    assert len(set(kept["candidate_id"].to_pylist())) == 3


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "m"},
            "target": {"model": "m"},
            "training": {"retain": {"path": "x"}},
            "selection": {"keep": 2},
        }
    )


def finished(run: RunDir, rows: list[dict]) -> None:
    root = run.candidates(0)
    write_manifest(root, [write_shard(root, "part-0.parquet", table(*rows))], fingerprint(recipe()))


def test_the_stage_writes_a_training_set_that_can_be_read_back(tmp_path):
    run = RunDir(str(tmp_path))
    finished(run, FOUR)
    report = select(run, recipe())
    assert (report.kept, report.behaviors, report.without, report.skipped) == (2, 1, (), False)
    assert read_table(run.training_set(0), fingerprint=fingerprint(recipe()))["candidate_id"].to_pylist() == ["2", "4"]
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    again = select(run, recipe())
    assert again.skipped
    assert (again.kept, again.dropped) == (report.kept, report.dropped)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_nothing_to_keep_is_an_error_with_counts(tmp_path):
    run = RunDir(str(tmp_path))
    finished(run, [candidate("1", ""), candidate("2", None, error="x")])
    with pytest.raises(DatError, match=r"kept none of 2 candidates \(error 1, empty 1\)"):
        select(run, recipe())


def test_unfinished_candidates_are_not_read(tmp_path):
    run = RunDir(str(tmp_path))
    write_shard(run.candidates(0), "part-0.parquet", table(*FOUR))
    with pytest.raises(ShardError, match="has not finished"):
        select(run, recipe())


def test_ranking_by_what_the_prompt_adds_to_a_response_that_is_likely_anyway():
    rows = [
        candidate("1", "one", 0.9, -1.0, neutral_target_logprob=-1.1),
        candidate("2", "two", 0.1, -2.0, neutral_target_logprob=-4.0),
        candidate("3", "three", 0.9, -1.5, neutral_target_logprob=-2.5),
        candidate("4", "four", 0.9, -0.5),
    ]
    assert chosen(rows, score="gain") == ["2", "3", "1", "4"]
    assert chosen(rows, score="judge_then_gain") == ["3", "1", "4", "2"]


def test_prompts_below_a_floor_are_dropped_counted_and_the_nearest_named():
    rows = [
        candidate("on", "one", goal_similarity=0.5),
        candidate("near", "two", goal_similarity=0.49),
        candidate("far", "three", goal_similarity=-0.2),
        candidate("unmeasured", "four"),
        candidate("unlikely", "five", logprob=-3.5, goal_similarity=0.9),
        candidate("both", "six", logprob=-9.0, goal_similarity=0.1),
        candidate("middle", "seven", goal_similarity=0.3),
    ]
    cfg = SelectionConfig(min_goal_similarity=0.5, min_target_logprob=-3.0)
    found = choose(table(*rows), cfg)
    assert found.table["candidate_id"].to_pylist() == ["on"]
    assert found.table["goal_similarity"].to_pylist() == [0.5]
    assert (found.dropped["off_goal"], found.dropped["unlikely"]) == (5, 1)
    # Nearest to the floor first; a value that is missing is the farthest.
    assert found.nearest == {"off_goal": ("near", "middle", "both"), "unlikely": ("unlikely",)}
    lines = selection_lines(cfg, SelectionReport(1, found.dropped, 1, (), False, found.nearest))
    assert lines[0].startswith("5 candidates are below selection.min_goal_similarity = 0.5")
    assert lines[0].endswith("near, middle, both")
    assert lines[1].startswith("1 candidates are below selection.min_target_logprob = -3.0")


def test_prompts_that_nearly_copy_their_goal_are_dropped_counted_and_the_nearest_named():
    rows = [
        candidate("same", "Bake a cake!", 0.9, goal_similarity=1.0),
        candidate("at", "one", 0.9, goal_similarity=0.95),
        candidate("under", "two", goal_similarity=0.94),
        candidate("unmeasured", "three"),
        candidate("leaks", "sure here is how", goal_similarity=0.97),
        candidate("far", "four", goal_similarity=0.2),
    ]
    cfg = SelectionConfig(min_goal_similarity=0.5, max_goal_similarity=0.95, include_original=True)
    found = choose(table(*rows), cfg)
    # The goal itself is added all the same where the recipe says so.
    assert found.table["prompt"].to_pylist() == ["two", "bake a cake"]
    assert {reason: count for reason, count in found.dropped.items() if count} == {"leak": 1, "off_goal": 2, "copy": 2}
    assert found.nearest == {"off_goal": ("far", "unmeasured"), "copy": ("at", "same")}
    _, line = selection_lines(cfg, SelectionReport(2, found.dropped, 1, (), False, found.nearest))
    assert line == (
        "2 candidates are at or above selection.max_goal_similarity = 0.95: they nearly copy their goal; the nearest: at, same"
    )
    # Without a floor what nobody measured is past the ceiling too.
    alone = choose(table(*rows), SelectionConfig(max_goal_similarity=0.95))
    assert alone.table["candidate_id"].to_pylist() == ["far", "under"]
    assert alone.nearest == {"copy": ("at", "same", "unmeasured")}


def test_a_ceiling_above_a_floor_leaves_room() -> None:
    tree = load_recipe("demo").model_dump() | {"encoder": {}}
    for floor in (0.5, 0.8):
        tree["selection"] |= {"min_goal_similarity": floor, "max_goal_similarity": 0.5}
        with pytest.raises(ValueError, match="raise the ceiling, or lower the floor"):
            Recipe.model_validate(tree)
    tree["selection"] |= {"min_goal_similarity": 0.49}
    Recipe.model_validate(tree)


def test_a_floor_that_is_off_drops_nothing():
    assert chosen([candidate("1", "one", logprob=-99.0)]) == ["1"]


def test_a_behavior_without_a_prompt_keeps_its_goal_where_that_is_asked_for():
    rows = [candidate("1", "one"), candidate("2", "two", behavior_id="b1", goal="juggle", goal_similarity=0.1)]
    cfg = SelectionConfig(goal_without_prompt=True, min_goal_similarity=-1.0)
    rows[0]["goal_similarity"], rows[1]["goal_similarity"] = 0.7, None
    found = choose(table(*rows), cfg)
    assert found.without == ("b1",)
    kept = {row["behavior_id"]: (row["prompt"], row["goal_similarity"]) for row in found.table.to_pylist()}
    assert kept == {"b0": ("one", 0.7), "b1": ("juggle", None)}
    [_, named] = selection_lines(cfg, SelectionReport(2, found.dropped, 2, found.without, False, found.nearest))
    assert named == "1 of 2 behaviors have no prompt that was kept, and are trained on by their goal: b1"
    absent = choose(table(*rows), SelectionConfig(min_goal_similarity=-1.0))
    assert absent.table["behavior_id"].to_pylist() == ["b0"]


def test_candidates_of_a_version_that_measured_neither_are_read(tmp_path):
    old = table(candidate("1", "one")).drop_columns(["goal_similarity", "neutral_target_logprob"])
    assert choose(old, SelectionConfig()).table["goal_similarity"].to_pylist() == [None]
    folder = str(tmp_path)
    write_manifest(
        folder, [write_shard(folder, "a.parquet", old), write_shard(folder, "b.parquet", table(candidate("2", "two")))], "f"
    )
    assert read_table(folder)["goal_similarity"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"selection": {"min_goal_similarity": 0.5}}, "selection.min_goal_similarity needs an encoder"),
        ({"selection": {"max_goal_similarity": 0.9}}, "selection.max_goal_similarity needs an encoder"),
        ({"evaluation": {"min_goal_similarity": 0.5}}, "evaluation.min_goal_similarity needs an encoder"),
        ({"selection": {"score": "gain"}}, "set generation.neutral_prompt"),
    ],
)
def test_a_setting_that_reads_what_nobody_measures_is_refused(changes, said):
    tree = {
        "name": "x",
        "behaviors": {"path": "none", "heldout": {"path": "none"}},
        "sampler": {"model": "none"},
        "target": {"model": "none"},
        "training": {"retain": {"path": "none"}},
    }
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({**tree, **changes})
    Recipe.model_validate({**tree, **changes, "encoder": {}, "generation": {"neutral_prompt": "Hello."}})


def test_only_prompts_that_break_the_model_are_kept_where_the_recipe_says_so() -> None:
    rows = [candidate("1", "one", 0.9), candidate("2", "two", 0.2, verdict="not_harmful"), candidate("3", "three", 0.5)]
    found = choose(table(*rows), SelectionConfig(only_harmful=True))
    assert found.table["candidate_id"].to_pylist() == ["1", "3"]
    assert found.dropped["harmless"] == 1
