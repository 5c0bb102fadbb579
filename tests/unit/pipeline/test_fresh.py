"""Fresh prompts for the distribution gap: drawn for the same targets with another seed, and kept by each run's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.config.study import Study, read_study
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import RunDir, open_run, read_record
from dat_ray.data.schemas import HELD_OUT, TRAIN, TRAINING_SET
from dat_ray.data.shards import join, write_file, write_manifest, write_shard
from dat_ray.evaluation.gap_pairs import ScoredPair, measured_behaviors
from dat_ray.generation.expand import expand
from dat_ray.generation.select import choose, select
from dat_ray.pipeline.fresh import as_training, fresh_recipe, fresh_sets, run_pairs, study_pairs
from tests.plain_demo import PLAIN, PLAIN_ARMS
from tests.unit.generation.test_select import candidate, table

GAP = "evaluation.gap={behaviors: 3, prompts: null}"


def demo(*settings: str) -> Recipe:
    return load_recipe("demo", [*PLAIN, GAP, "seed=0", "selection={keep: 2, include_original: true}", *settings])


def test_the_fresh_prompts_are_drawn_for_the_same_rows_with_other_seeds() -> None:
    recipe = demo("seed=4")
    behaviors, drawn = load_behaviors(recipe.behaviors).table, fresh_recipe(recipe)
    wanted = as_training(behaviors, drawn)
    measured = measured_behaviors(behaviors, recipe)
    assert set(wanted["split"].to_pylist()) == {TRAIN}
    assert set(wanted["behavior_id"].to_pylist()) == measured[TRAIN] | measured[HELD_OUT]
    trained, again = expand(behaviors, recipe, "s"), expand(wanted, drawn, "s")
    shared = set(trained["candidate_id"].to_pylist()) & set(again["candidate_id"].to_pylist())
    # As many for each target of the behaviors that are trained on, under the same ids and other seeds.
    assert len(shared) == 3 * recipe.generation.samples_per_target
    seeds = [dict(zip(one["candidate_id"].to_pylist(), one["seed"].to_pylist(), strict=True)) for one in (trained, again)]
    assert not any(seeds[0][key] == seeds[1][key] for key in shared)


def test_its_recipe_reads_back_and_is_that_of_all_runs_that_share_the_draws(tmp_path: Path) -> None:
    recipe = demo("seed=4")
    drawn = fresh_recipe(recipe)
    run = open_run(str(tmp_path / "fresh"), drawn, resume=True)
    assert read_record(run).recipe == drawn
    assert open_run(run.root, fresh_recipe(recipe), resume=True) == run

    def mark(*settings: str) -> str:
        return fingerprint(fresh_recipe(demo(*settings)))

    same = ("seed=9", "rounds=2", "selection.score=random", "training.updates=9", "evaluation.attacks=[direct]")
    assert {mark(one) for one in same} == {fingerprint(drawn)}
    other = ("sampler.steps=9", "generation.samples_per_target=97", "evaluation.gap.behaviors=4", "evaluation.gap.seed=1")
    assert len({mark(one) for one in other} | {fingerprint(drawn)}) == 5


def drawn_rows(recipe: Recipe, behaviors: pa.Table, word: str, samples: int = 3) -> list[dict[str, Any]]:
    """Candidates of all behaviors of the table, with scores that prefer later samples."""
    return [
        candidate(
            f"{word}-{row['behavior_id']}-{row['target_index']}-{sample}",
            f"{word} {sample} of {row['behavior_id']} {row['target_index']}",
            1.0,
            -1.0 / (1 + sample),
            behavior_id=row["behavior_id"],
            goal=row["goal"],
            target=f"{row['target']} at once",
            refusal=row["refusal"],
        )
        for row in behaviors.to_pylist()
        for sample in range(samples)
    ]


def publish(folder: str, found: pa.Table, recipe: Recipe) -> None:
    write_manifest(folder, [write_shard(folder, "part-0.parquet", found)], fingerprint(recipe))


def a_run(root: Path, recipe: Recipe) -> RunDir:
    """Selected, from candidates that are made up."""
    run, behaviors = open_run(str(root), recipe, resume=True), load_behaviors(recipe.behaviors).table
    write_file(run.behaviors, behaviors)
    trained = behaviors.filter(pc.equal(behaviors["split"], TRAIN))
    publish(run.candidates(0), table(*drawn_rows(recipe, trained, f"trained {recipe.seed}")), recipe)
    select(run, recipe)
    return run


def some_fresh(root: str, recipe: Recipe) -> RunDir:
    run, drawn = RunDir(root), fresh_recipe(recipe)
    wanted = as_training(load_behaviors(recipe.behaviors).table, drawn)
    publish(run.candidates(0), table(*drawn_rows(drawn, wanted, "fresh")), drawn)
    return run


def prompts(pairs: Sequence[ScoredPair], prompt_set: str) -> list[str]:
    return sorted(pair.prompt for pair in pairs if pair.prompt_set == prompt_set)


def test_the_rule_that_kept_the_training_prompts_keeps_the_fresh_ones(tmp_path: Path) -> None:
    recipe = demo()
    run, fresh = a_run(tmp_path / "run", recipe), some_fresh(str(tmp_path / "fresh"), recipe)
    found = run_pairs(recipe, run, fresh)
    measured = measured_behaviors(load_behaviors(recipe.behaviors).table, recipe)
    one, held = sorted(measured[TRAIN])[0], sorted(measured[HELD_OUT])[0]
    # The two best of three, and no goal, though the recipe adds goals to the training set.
    assert [text for text in prompts(found, "training") if one in text] == [f"trained 0 {at} of {one} 0" for at in (1, 2)]
    assert [text for text in prompts(found, "fresh_prompts") if one in text] == [f"fresh {at} of {one} 0" for at in (1, 2)]
    assert [text for text in prompts(found, "fresh_targets") if held in text] == [f"fresh 2 of {held} {at}" for at in (0, 1)]
    assert not any(pair.is_goal for pair in found)
    assert {pair.behavior_id for pair in found if pair.prompt_set == "training"} == measured[TRAIN]
    assert {pair.behavior_id for pair in found if pair.prompt_set == "fresh_targets"} == measured[HELD_OUT]
    # A mixture trains on such prompts too, beside the goals.
    mixed = demo("selection={source: mixture, keep: 2}")
    pairs = run_pairs(mixed, a_run(tmp_path / "mixed", mixed), fresh)
    assert prompts(pairs, "training") == prompts(found, "training")
    # Of a run that trains on goals these are the training prompts; the fresh ones are those of its rule.
    goals = demo("selection={source: goals, keep: 1}")
    pairs = run_pairs(goals, a_run(tmp_path / "goals", goals), fresh)
    assert all(pair.is_goal for pair in pairs if pair.prompt_set == "training")
    assert len(prompts(pairs, "fresh_prompts")) == 3


def test_the_first_rounds_prompts_are_those_of_the_law(tmp_path: Path) -> None:
    recipe = demo("rounds=2")
    run, fresh = a_run(tmp_path / "run", recipe), some_fresh(str(tmp_path / "fresh"), recipe)
    publish(run.training_set(1), pa.Table.from_pylist([], schema=TRAINING_SET), recipe)
    assert len(prompts(run_pairs(recipe, run, fresh), "training")) == 6


def a_study(tmp_path: Path, **changes: Any) -> Study:
    tree = {
        "name": "x",
        "seeds": [3, 4],
        "reference": "dat",
        "settings": {"selection": {"keep": 2, "include_original": False}},
        "arms": {
            "goals": {"settings": {"selection": {"source": "goals"}}},
            "dat": {},
            "random": {"settings": {"selection": {"score": "random"}}},
        },
        "suites": {"heldout": {"gap": {"behaviors": 2, "prompts": None}}, "plain": {}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return read_study(str(path), PLAIN_ARMS)


def test_arms_that_differ_in_their_rule_share_one_set_of_draws(tmp_path: Path) -> None:
    assert len(fresh_sets(a_study(tmp_path))) == 1
    assert not fresh_sets(a_study(tmp_path, suites={"plain": {}}))
    arms = {"dat": {}, "steps": {"settings": {"sampler": {"steps": 9}}}}
    assert len(fresh_sets(a_study(tmp_path, arms=arms))) == 2


def test_each_run_of_a_study_has_its_own_pairs_and_the_base_model_the_references(tmp_path: Path) -> None:
    plan = a_study(tmp_path)
    folders = {run.model: a_run(tmp_path / run.model, run.recipe).root for run in plan.runs}
    [(name, _)] = fresh_sets(plan).items()
    suite = plan.suites["heldout"]
    some_fresh(join(str(tmp_path), name), suite)
    found = study_pairs(suite, folders, [*folders.values(), join(str(tmp_path), name)])
    assert set(found) == {"base", *folders}
    own = len(found["dat@3"])
    assert found["base"][:own] == found["dat@3"]
    # And every other run's training prompts, each set once: goals are the same under both seeds.
    others: dict[str, list[str]] = {}
    for pair in found["base"][own:]:
        others.setdefault(pair.prompt_set, []).append(pair.prompt)
    names = ("goals@3", "dat@4", "random@3", "random@4")
    kept_apart = {f"training/{name}": prompts(found[name], "training") for name in names}
    assert {name: sorted(texts) for name, texts in others.items()} == kept_apart
    assert prompts(found["goals@4"], "training") == prompts(found["goals@3"], "training")
    assert prompts(found["dat@3"], "fresh_prompts") == prompts(found["dat@4"], "fresh_prompts")
    assert prompts(found["dat@3"], "training") != prompts(found["dat@4"], "training")
    # Its own rule on the same draws.
    kept = prompts(found["random@3"], "fresh_prompts")
    assert kept != prompts(found["dat@3"], "fresh_prompts")
    drawn = drawn_rows(suite, as_training(load_behaviors(suite.behaviors).table, fresh_recipe(suite)), "fresh")
    random = next(run.recipe for run in plan.runs if run.arm == "random")
    assert set(kept) <= set(choose(table(*drawn), random.selection).table["prompt"].to_pylist())


@pytest.mark.parametrize("suite", ["heldout", "plain"])
def test_a_suite_without_a_gap_measures_none(suite: str, tmp_path: Path) -> None:
    gap = a_study(tmp_path).suites[suite].evaluation.gap
    assert (gap is None) == (suite == "plain")
