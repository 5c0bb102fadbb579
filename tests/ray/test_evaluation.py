"""Evaluation in real Ray actors: complete, resumed, with bad rows, dead processes and engines that do not start."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dat_ray.config.loading import fingerprint
from dat_ray.data.shards import has_manifest, join, read_bytes, read_table
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.evaluation.results import part_json
from dat_ray.evaluation.stage import evaluate
from dat_ray.measures.intervals import wilson
from tests.ray.tiny_evaluation import HELD_OUT, LOOK_ALIKES, SAMPLES, Faults, engines, tiny_recipe, tiny_run

pytestmark = pytest.mark.usefixtures("ray_cluster")

PROMPTS = HELD_OUT * SAMPLES
ATTEMPTS = 2 * (HELD_OUT + PROMPTS + LOOK_ALIKES)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def test_a_whole_evaluation_and_its_numbers(tmp_path: Path, notes: Path) -> None:
    recipe, faults = tiny_recipe(), Faults(str(notes))
    run = tiny_run(tmp_path / "run", recipe)
    report = evaluate(recipe, run, engines=engines(faults))
    assert (report.rows, report.errors, report.skipped) == (ATTEMPTS, 0, False)

    root = run.evaluation("default")
    rows = read_table(root, fingerprint=fingerprint(recipe)).to_pylist()
    assert Counter((row["model"], row["attack"]) for row in rows) == {
        (model, attack): count
        for model in ("base", "adapted")
        for attack, count in (("direct", HELD_OUT), ("inpainting", PROMPTS), (OVER_REFUSAL, LOOK_ALIKES))
    }
    assert len({row["attempt_id"] for row in rows}) == ATTEMPTS
    by_model = {
        model: sorted((row["behavior_id"], row["attempt_index"], row["prompt"]) for row in rows if row["model"] == model)
        for model in ("base", "adapted")
    }
    assert by_model["base"] == by_model["adapted"]

    metrics = json.loads(read_bytes(join(root, "metrics.json")))
    assert metrics == json.loads(part_json(report.metrics))
    assert metrics["judge"] == {"name": "tiny-judge", "fingerprint": "0", "is_proxy": True, "deviations": []}
    base, adapted = metrics["models"]["base"], metrics["models"]["adapted"]
    half = wilson(3, 6)
    for attack in ("direct", "inpainting"):
        assert (base["attacks"][attack]["asr"], base["attacks"][attack]["n_behaviors"]) == (1.0, 6)
        found = adapted["attacks"][attack]
        assert (found["asr"], found["low"], found["high"]) == (0.5, half.low, half.high)
    assert (base["boa"]["asr"], adapted["boa"]["asr"]) == (1.0, 0.5)
    assert (base["over_refusal"]["rate"], adapted["over_refusal"]["rate"]) == (0.0, 0.5)
    assert (base["target_logprob"]["mean"], adapted["target_logprob"]["mean"]) == (-1.0, -3.0)
    pairs = {(pair["metric"], pair["attack"]): pair["difference"] for pair in metrics["paired"]}
    assert pairs["asr", "direct"] == -0.5
    assert pairs["target_logprob", None] == -2.0
    drawn = read_table(join(root, "prompts")).to_pylist()
    nfe = sum(row["nfe"] for row in drawn)
    assert metrics["sampler"]["nfe"] == nfe
    assert metrics["model_calls"] == {"base": nfe + ATTEMPTS // 2, "adapted": nfe + ATTEMPTS // 2}

    asked = len(faults.noted("base")) + len(faults.noted("adapted"))
    again = evaluate(recipe, run, engines=engines(faults))
    assert (again.skipped, again.rows, again.metrics) == (True, ATTEMPTS, report.metrics)
    assert len(faults.noted("base")) + len(faults.noted("adapted")) == asked == ATTEMPTS

    tiny_run(tmp_path / "run", recipe, adapter=b"other weights")
    with pytest.raises(InputError, match="another adapted model"):
        evaluate(recipe, run, engines=engines(faults))


@pytest.mark.fault
def test_a_process_that_dies_loses_nothing_that_was_stored(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "run", recipe)
    with pytest.raises(DatError, match="target: its process died"):
        evaluate(recipe, run, engines=engines(Faults(str(notes), adapted_exits=True)))
    assert not has_manifest(run.evaluation("default"))
    faults = Faults(str(notes))
    report = evaluate(recipe, run, engines=engines(faults))
    assert report.errors == 0
    # Asked once each over both calls: the base model and the sampler were not started again.
    assert len(faults.noted("base")) == len(faults.noted("adapted")) == ATTEMPTS // 2
    assert len(set(faults.noted("drawn"))) == len(faults.noted("drawn")) == PROMPTS

    straight = tiny_run(tmp_path / "straight", recipe)
    evaluate(recipe, straight, engines=engines(faults))
    assert _without_seconds(straight.evaluation("default")) == _without_seconds(run.evaluation("default"))


def _without_seconds(root: str) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_table(root).to_pylist()]


def test_bad_rows_are_counted_and_cost_only_themselves(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "run", recipe)
    report = evaluate(recipe, run, engines=engines(Faults(str(notes), no_prompt_for="Sure 1", no_answer_to="goal 2")))
    # Behavior 1 has no in-painted prompts for either model, and nobody answers goal 2.
    assert report.errors == 2 * (SAMPLES + 1)
    rows = read_table(run.evaluation("default")).to_pylist()
    failed = [row for row in rows if row["error"] is not None]
    assert {(row["attack"], row["behavior_id"], row["error"]) for row in failed} == {
        ("inpainting", "h1", "sampler: ValueError: cannot in-paint"),
        ("direct", "h2", "target: ValueError: prompt too long"),
    }
    assert all(row["verdict"] is None for row in failed)
    attacks = report.metrics.models["base"].attacks
    assert (attacks["direct"].n_behaviors, attacks["inpainting"].n_behaviors) == (5, 5)
    assert report.metrics.models["base"].boa.n_behaviors == 6


def test_too_many_bad_rows_stop_the_stage(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe(generation={"max_error_rate": 0.1})
    run = tiny_run(tmp_path / "run", recipe)
    with pytest.raises(DatError, match=r"max_error_rate = 0.1 allows 3 of 30.*cannot in-paint"):
        evaluate(recipe, run, engines=engines(Faults(str(notes), no_prompt_for="Sure 1")))


def test_an_engine_that_does_not_start_says_why(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "run", recipe)
    with pytest.raises(DatError, match="target failed: OSError: weights not found"):
        evaluate(recipe, run, engines=engines(Faults(str(notes), no_start=True)))


def test_a_pool_that_never_fits_is_a_diagnosis_not_a_wait(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe(cluster={"target": {"num_cpus": 1000}}, timeouts={"engine_start": 2}, evaluation={"attacks": ["direct"]})
    run = tiny_run(tmp_path / "run", recipe)
    with pytest.raises(DatError, match=r"target: nothing in 2 s; 0 of 1 engines are up, each asks for 1000 CPU"):
        evaluate(recipe, run, engines=engines(Faults(str(notes))))


def test_without_an_adapter_nothing_starts(tmp_path: Path, notes: Path) -> None:
    recipe = tiny_recipe()
    run = tiny_run(tmp_path / "run", recipe)
    (tmp_path / "run" / "training" / "round-0" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="dat train"):
        evaluate(recipe, run, engines=engines(Faults(str(notes))))


def test_models_that_a_user_names_answer_the_same_questions(tmp_path: Path, notes: Path) -> None:
    recipe, faults = tiny_recipe(evaluation={"attacks": ["direct"]}), Faults(str(notes))
    run = tiny_run(tmp_path / "run", recipe)
    adapter = run.adapter(0)
    models = [Model("plain", None, "none"), Model("dat", adapter, "1"), Model("other", None, "org/other", "org/other")]
    report = evaluate(recipe, run, "comparison", engines(faults), models)
    assert list(report.metrics.models) == ["plain", "dat", "other"]
    found = {(pair.first, pair.second): pair.difference for pair in report.metrics.paired if pair.metric == "boa"}
    assert found == {("plain", "dat"): -0.5, ("plain", "other"): 0.0, ("dat", "other"): 0.5}
    # A model that is not the recipe's target is built from its own name.
    assert set(faults.noted("built")) == {"none", "none adapted", "org/other"}
    with pytest.raises(InputError, match="an evaluation of plain, dat, other, not of plain"):
        evaluate(recipe, run, "comparison", engines(faults), models[:1])
