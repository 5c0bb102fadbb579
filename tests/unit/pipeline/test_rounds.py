"""The order of a run's stages, round by round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.rundir import RunDir, last_round, open_run, rounds_begun
from dat_ray.data.shards import write_manifest
from dat_ray.errors import ShardError
from dat_ray.pipeline.rounds import adapter_before, steps
from dat_ray.training.driver import round_seed
from dat_ray.training.update_metrics import read_rounds

STAGES = ("generate", "select", "train", "evaluate", "report")


def recipe(rounds: int) -> Recipe:
    return load_recipe("demo", [f"rounds={rounds}"])


def labels(run: RunDir, rounds: int, *stages: str) -> list[str]:
    return [step.label for step in steps(recipe(rounds), run, stages)]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return open_run(str(tmp_path / "run"), recipe(3), resume=False)


def finished(*folders: str) -> None:
    for folder in folders:
        write_manifest(folder, [], "0" * 16)


def test_a_whole_run_goes_round_by_round_and_evaluates_once(run: RunDir) -> None:
    assert labels(run, 1, *STAGES) == list(STAGES)
    of_rounds = [f"{stage}, round {index} of 2" for index in (1, 2) for stage in ("generate", "select", "train")]
    assert labels(run, 2, *STAGES) == [*of_rounds, "evaluate", "report"]


def test_one_stage_alone_goes_on_with_the_round_that_has_what_it_needs(run: RunDir) -> None:
    # What is lacking is told by the stage itself.
    for stage in ("generate", "select", "train"):
        assert labels(run, 3, stage) == [f"{stage}, round 1 of 3"]
    finished(run.candidates(0), run.training_set(0))
    assert labels(run, 3, "generate") == ["generate, round 1 of 3"]
    assert labels(run, 3, "train") == ["train, round 1 of 3"]
    finished(run.training(0))
    assert labels(run, 3, "generate") == ["generate, round 1 of 3", "generate, round 2 of 3"]
    assert labels(run, 3, "select") == ["select, round 1 of 3"]
    finished(run.candidates(1))
    assert labels(run, 3, "select")[-1] == "select, round 2 of 3"
    assert labels(run, 3, "evaluate") == ["evaluate"]


def test_the_first_round_s_prompts_are_answered_by_the_base_model(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter_before(run, 0) is None
    assert adapter_before(run, 2) == run.adapter(1)
    monkeypatch.chdir(Path(run.root).parent)
    # Engines have working directories of their own.
    assert adapter_before(RunDir("run"), 1) == run.adapter(0)
    assert adapter_before(RunDir("s3://bucket/run"), 1) == "s3://bucket/run/training/round-0/adapter"


def test_the_result_is_the_last_round_s(run: RunDir) -> None:
    assert (last_round(recipe(1)), last_round(recipe(3))) == (0, 2)
    assert rounds_begun(run, recipe(3)) == [0]
    finished(run.candidates(0), run.candidates(1))
    assert rounds_begun(run, recipe(3)) == [0, 1]
    assert rounds_begun(run, recipe(1)) == [0]


def test_rounds_see_their_rows_in_other_orders_and_the_first_as_without_rounds() -> None:
    seeds: list[Any] = [round_seed(7, index) for index in range(3)]
    assert seeds[0] == 7
    assert seeds[1:] == [seed_from_id(row_id("round", 7, index)) for index in (1, 2)]
    assert len(set(seeds)) == 3


def test_updates_of_rounds_are_counted_on_and_a_damaged_log_is_told(tmp_path: Path) -> None:
    roots = [str(tmp_path / name) for name in ("first", "second", "third")]
    logs: list[list[object]] = [[0, 1], [0, 1, 2], ["x"]]
    for root, updates in zip(roots, logs, strict=True):
        Path(root).mkdir()
        (Path(root) / "metrics.jsonl").write_text("".join(json.dumps({"update": update}) + "\n" for update in updates))
    assert [row["update"] for row in read_rounds(roots[:2])] == [0, 1, 2, 3, 4]
    assert read_rounds([str(tmp_path / "none")]) == []
    with pytest.raises(ShardError, match=r"third/metrics\.jsonl"):
        read_rounds(roots)
