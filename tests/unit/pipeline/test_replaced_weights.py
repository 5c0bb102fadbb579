"""A run whose models' folders get other weights is not continued with what the old ones said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.schemas import ATTEMPTS, BEHAVIORS, CANDIDATES, TRAINING_SET
from dat_ray.data.shards import has_manifest, write_bytes, write_file, write_manifest, write_shard
from dat_ray.errors import InputError
from dat_ray.evaluation import stage as evaluation
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.metrics import model_metrics
from dat_ray.evaluation.results import JudgeFacts, Metrics, store_metrics
from dat_ray.generation import stage as generation
from dat_ray.models.identity import check_weights, models_of
from dat_ray.training import driver as training
from dat_ray.training.retain_set import prepare_retain
from tests.unit.models.test_identity import model_folder

ROLES = ("sampler", "target", "judge.reader")


class Started(Exception):
    """A stage went past its checks."""


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise Started

    monkeypatch.setattr(generation, "start_ray", start)
    monkeypatch.setattr(evaluation, "start_ray", start)
    monkeypatch.setattr(training, "run_workers", start)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """With a folder for each model."""
    folders = {role: model_folder(tmp_path / role, value) for role, value in zip(ROLES, (1.0, 2.0, 3.0), strict=True)}
    (tmp_path / "retain.jsonl").write_text('{"prompt": "hello", "id": "r"}\n')
    return Recipe.model_validate(
        {
            "name": "r",
            "behaviors": {"path": "b", "heldout": {"path": "h"}},
            "sampler": {"model": folders["sampler"], "prompt_tokens": 4, "steps": 2},
            "target": {"model": folders["target"]},
            "judge": {"name": "harmbench", "prompt": "{goal} {response}", "reader": {"model": folders["judge.reader"]}},
            "generation": {"samples_per_target": 2},
            "training": {
                "harmful_rows": 1,
                "retain_rows": 0,
                "retain_weight": 0,
                "retain": {"path": str(tmp_path / "retain.jsonl")},
            },
            "evaluation": {"attacks": ["direct", "inpainting"], "inpainting_samples": 1},
        }
    )


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDir:
    """A run that has begun: behaviors, a training set and an adapter are there, and all weights are recorded."""
    run = open_run(str(tmp_path / "run"), recipe, resume=False)
    row = {"goal": "g", "category": None, "source": "s", "target_index": 0, "target": "Sure", "refusal": "No."}
    rows = [row | {"behavior_id": split, "split": split} for split in ("train", "heldout")]
    write_file(run.behaviors, pa.Table.from_pylist(rows, schema=BEHAVIORS))
    kept = {"candidate_id": "c", "behavior_id": "train", "prompt": "p", "target": "Sure", "refusal": "No.", "rank": 0}
    store(run.training_set(0), [kept], TRAINING_SET, run.fingerprint_of(recipe))
    write_bytes(f"{run.adapter(0)}/adapter_model.safetensors", b"weights")
    check_weights(run.root, models_of(recipe, *ROLES))
    return run


def store(folder: str, rows: list[dict[str, Any]], schema: pa.Schema, fingerprint: str) -> None:
    write_manifest(folder, [write_shard(folder, "part-0.parquet", pa.Table.from_pylist(rows, schema=schema))], fingerprint)


STAGES: dict[str, Callable[..., Any]] = {
    "generate": generation.generate,
    "train": training.train,
    "evaluate": evaluation.evaluate,
}
CASES = [("generate", role) for role in ROLES] + [("train", "target")] + [("evaluate", role) for role in ROLES]


@pytest.mark.parametrize(("stage", "role"), CASES)
def test_a_stage_refuses_other_weights_and_takes_the_old_ones_again(stage, role, tmp_path, recipe, run) -> None:
    with pytest.raises(Started):
        STAGES[stage](recipe, run)
    model_folder(tmp_path / role, 9.0)
    with pytest.raises(InputError, match=rf"{role}\.model = .*has other weights") as caught:
        STAGES[stage](recipe, run)
    assert "\n" not in str(caught.value)
    model_folder(tmp_path / role, 1.0 + ROLES.index(role))
    with pytest.raises(Started):
        STAGES[stage](recipe, run)


def test_models_that_a_stage_does_not_use_may_change(tmp_path, recipe, run) -> None:
    for role in ("sampler", "judge.reader"):
        model_folder(tmp_path / role, 9.0)
    with pytest.raises(Started):
        training.train(recipe, run)


@pytest.mark.parametrize("role", ROLES)
def test_finished_stages_are_not_taken_for_those_of_other_weights(role, tmp_path, recipe, run) -> None:
    fingerprint = run.fingerprint_of(recipe)
    store(run.candidates(0), [], CANDIDATES, fingerprint)
    store(run.evaluation("default"), [], ATTEMPTS, fingerprint)
    empty = model_metrics([], {}, recipe.evaluation, 0)
    models = {one.name: empty.model_copy(update={"weights": one.weights}) for one in evaluation.own_models(recipe, run)}
    judge = JudgeFacts(name="j", fingerprint="0", is_proxy=True)
    store_metrics(run.evaluation("default"), Metrics(judge=judge, models=models, paired=[]))
    assert generation.generate(recipe, run).skipped
    assert evaluation.evaluate(recipe, run).skipped
    model_folder(tmp_path / role, 9.0)
    for stage in (generation.generate, evaluation.evaluate):
        with pytest.raises(InputError, match="has other weights"):
            stage(recipe, run)


def test_answers_to_the_retain_prompts_come_from_the_recorded_target(tmp_path, recipe, run) -> None:
    model_folder(tmp_path / "target", 9.0)
    with pytest.raises(InputError, match=r"target\.model = .*has other weights"):
        prepare_retain(recipe, run, complete=lambda prompts: ["hi"] * len(prompts))
    model_folder(tmp_path / "target", 2.0)
    assert prepare_retain(recipe, run, complete=lambda prompts: ["hi"] * len(prompts)).rows == 1


def test_a_model_that_a_suite_names_is_recorded_with_the_suite(tmp_path, recipe, run) -> None:
    other = model_folder(tmp_path / "other", 5.0)
    models = [Model("base", None, recipe.target.model), Model("other", None, other, other)]
    with pytest.raises(Started):
        evaluation.evaluate(recipe, run, "comparison", models=models)
    model_folder(tmp_path / "other", 6.0)
    with pytest.raises(InputError, match=r"models\.other = .*has other weights .*evaluation/comparison"):
        evaluation.evaluate(recipe, run, "comparison", models=models)
    # Another suite may ask the new weights.
    with pytest.raises(Started):
        evaluation.evaluate(recipe, run, "again", models=models)
    assert not has_manifest(run.evaluation("comparison"))
