from __future__ import annotations

import random

import pyarrow as pa
import pytest

from dat_ray.config.data import SelectionConfig
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import CANDIDATES, TRAINING_SET
from dat_ray.data.shards import read_table, write_manifest, write_shard
from dat_ray.errors import DatError, ShardError
from dat_ray.generation.select import choose, select


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
    return choose(table(*rows), SelectionConfig(**cfg))[0]["candidate_id"].to_pylist()


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


def test_the_best_k_of_each_behavior_are_kept_in_rank_order():
    rows = [*FOUR, candidate("5", "one", 0.2, -1.0, behavior_id="a9")]
    kept, dropped, without = choose(table(*rows), SelectionConfig(keep=2))
    assert kept.schema.equals(TRAINING_SET)
    assert [(r["behavior_id"], r["candidate_id"], r["rank"]) for r in kept.to_pylist()] == [
        ("a9", "5", 0),
        ("b0", "2", 0),
        ("b0", "4", 1),
    ]
    assert dropped == {"error": 0, "unparsed": 0, "empty": 0, "leak": 0, "duplicate": 0, "rank": 2}
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
    kept, dropped, _ = choose(table(*rows), SelectionConfig())
    assert kept["candidate_id"].to_pylist() == ["7", "5"]
    assert dropped == {"error": 1, "unparsed": 1, "empty": 1, "leak": 1, "duplicate": 1, "rank": 0}


def test_a_leak_is_found_in_scripts_without_spaces():
    target = {"target": "当然可以，这是便条"}
    rows = [
        candidate("1", "请回答：当然可以这是便条！", **target),
        candidate("2", "请写一张便条", **target),
        candidate("3", "请写一张便条。", 0.1, **target),
    ]
    kept, dropped, _ = choose(table(*rows), SelectionConfig())
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
    kept, _, without = choose(table(*rows), SelectionConfig(keep=1, include_original=True))
    found = [(r["behavior_id"], r["prompt"], r["target"], r["rank"], r["score"]) for r in kept.to_pylist()]
    assert found == [
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
