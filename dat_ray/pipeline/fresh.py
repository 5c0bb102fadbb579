"""Fresh prompts: new draws of the sampler for the distribution gap, kept by the rule that kept the training prompts.

They are candidates like those of a run's first round, of a run directory of their own: the same sampler draws with another seed,
as many for each target, for the training behaviors and for the held-out ones; the base model answers and the judge scores, since
the rule may ask for that. Which of them are kept is worked out again where they are used, by each run's own `selection`, so that
runs that differ in nothing else share the draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dat_ray.config.data import SelectionConfig
from dat_ray.config.evaluation import EvaluationConfig, GapConfig
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.config.study import BASE, Study
from dat_ray.config.training import TrainingConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.data.rundir import FIRST_ROUND, RunDir, open_run, read_record
from dat_ray.data.schemas import BEHAVIORS, HELD_OUT, TRAIN, for_training_goals
from dat_ray.data.shards import exists, has_manifest, join, read_file, read_table, write_file
from dat_ray.engines.pinning import pinned
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.gap_pairs import MEASURED, ScoredPair, drawn_pairs, measured_behaviors
from dat_ray.evaluation.gap_results import FRESH_PROMPTS, FRESH_TARGETS, TRAINING_PROMPTS
from dat_ray.generation.select import choose, kept_folder

# The stage, and the folder of a run's own fresh prompts, below the run's.
FRESH = "fresh"


def fresh_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the fresh prompts' own run directory: what candidates are made from, with another seed.

    Of the other sections it has what says which behaviors are drawn for, and defaults beside that: recipes that differ in
    nothing else share the draws.
    """
    gap = recipe.evaluation.gap
    assert gap is not None, "asked for where the gap is measured"
    others = {
        "seed": seed_from_id(row_id(FRESH, gap.seed)) % 2**31,
        "rounds": 1,
        "selection": SelectionConfig(),
        "training": TrainingConfig(retain_rows=0, retain_weight=0.0),
        "evaluation": EvaluationConfig(gap=GapConfig(seed=gap.seed, behaviors=gap.behaviors)),
    }
    return recipe.model_copy(update=others)


def as_training(behaviors: pa.Table, recipe: Recipe) -> pa.Table:
    """The behaviors that are measured, held-out ones among them, as ones to draw for.

    Args:
        behaviors: rows of schema BEHAVIORS.
        recipe: with `evaluation.gap`.
    """
    ids = sorted(set().union(*measured_behaviors(behaviors, recipe).values()))
    wanted = behaviors.filter(pc.is_in(behaviors["behavior_id"], pa.array(ids, pa.string())))
    wanted = wanted.filter(pc.is_in(wanted["split"], pa.array(MEASURED)))
    splits = pa.array([TRAIN] * wanted.num_rows, pa.string())
    place = wanted.column_names.index("split")
    return wanted.set_column(place, BEHAVIORS.field("split"), splits).cast(BEHAVIORS)


def draw_fresh(recipe: Recipe, root: str, behaviors: pa.Table) -> dict[str, Any]:
    """Draws fresh prompts, or goes on with it; returns what came out.

    Args:
        recipe: of `fresh_recipe`.
        root: their run directory.
        behaviors: rows of schema BEHAVIORS of the run that is measured.

    Raises:
        InputError: the directory holds those of another recipe.
        DatError: as `generate`.
    """
    from dat_ray.evaluation.drawn_prompts import write_diagnostics
    from dat_ray.generation.stage import generate

    run = open_run(root, recipe, resume=True)
    if not exists(run.behaviors):
        write_file(run.behaviors, as_training(behaviors, recipe))
    done = generate(recipe, run)
    write_diagnostics(recipe, run)
    return {"rows": done.rows, "errors": done.errors, "model_calls": done.nfe, "skipped": done.skipped}


def gap_is_open(recipe: Recipe, run: RunDir, suite: str) -> bool:
    """Whether an evaluation that is to measure the gap has not finished."""
    return recipe.evaluation.gap is not None and not has_manifest(run.evaluation(suite))


def draw_own(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """The fresh prompts of one run, below its directory."""
    kept = pinned(recipe, run.root, "sampler", "target", "judge", "encoder")
    return draw_fresh(fresh_recipe(kept), join(run.root, FRESH), read_file(run.behaviors))


def own_pairs(recipe: Recipe, run: RunDir, models: Sequence[Model]) -> dict[str, list[ScoredPair]]:
    """By model, the pairs of a run that is evaluated alone: the same for all its models."""
    found = run_pairs(recipe, run, RunDir(join(run.root, FRESH)))
    return {model.name: found for model in models}


def run_pairs(recipe: Recipe, run: RunDir, fresh: RunDir) -> list[ScoredPair]:
    """What a run kept of its own candidates in its first round, and what its rule keeps of the fresh ones.

    Args:
        recipe: the run's, with `evaluation.gap`.
        run: with its behaviors and its training set.
        fresh: the directory of the fresh prompts.

    Raises:
        ShardError: a table is missing or altered.
    """
    behaviors = read_file(run.behaviors)
    rows = behaviors.to_pylist()
    measured = measured_behaviors(behaviors, recipe)
    held_out = measured[HELD_OUT]
    goals = {row["behavior_id"]: row["goal"] for row in rows if row["behavior_id"] in measured[TRAIN] | held_out}
    trained = read_table(kept_folder(run, recipe, FIRST_ROUND)).to_pylist()
    kept = choose(for_training_goals(read_table(fresh.candidates(FIRST_ROUND))), recipe.selection).table.to_pylist()
    sets: Mapping[str, list[dict[str, Any]]] = {
        TRAINING_PROMPTS: trained,
        FRESH_PROMPTS: [row for row in kept if row["behavior_id"] not in held_out],
        FRESH_TARGETS: [row for row in kept if row["behavior_id"] in held_out],
    }
    return [pair for name, found in sets.items() for pair in drawn_pairs(name, found, goals, recipe)]


def fresh_sets(plan: Study) -> dict[str, Recipe]:
    """The fresh prompts of a study: a name for each set of draws that its runs share, to the recipe of that set's directory."""
    found: dict[str, Recipe] = {}
    for asked in plan.suites.values():
        for run in plan.runs if asked.evaluation.gap is not None else ():
            drawn = fresh_recipe(measured_by(run.recipe, asked))
            found.setdefault(_name(drawn), drawn)
    return found


def measured_by(recipe: Recipe, suite: Recipe) -> Recipe:
    """A run's recipe with the evaluation of a suite."""
    return recipe.model_copy(update={"evaluation": suite.evaluation})


def study_pairs(suite: Recipe, folders: Mapping[str, str], fresh: Iterable[str]) -> dict[str, list[ScoredPair]]:
    """By model, the pairs of a suite of a study: each run's own; of the base model those of the run whose recipe the suite has.

    The base model has the training prompts of all other runs too, as sets of their own (`training/ARM@SEED`, one for runs with
    the same prompts), so that a run can be held against what its prompts were before any training.

    Args:
        suite: the suite's recipe.
        folders: of the runs by their models' names.
        fresh: directories of the study's fresh prompts, among others.
    """
    roots = {root.rstrip("/").rpartition("/")[2]: root for root in fresh}
    found: dict[str, list[ScoredPair]] = {}
    for model, folder in folders.items():
        run = RunDir(folder)
        own = measured_by(read_record(run).recipe, suite)
        found[model] = run_pairs(own, run, RunDir(roots[_name(fresh_recipe(own))]))
        if fingerprint(own) == fingerprint(suite):
            found[BASE] = found[model]
    found[BASE] = [*found.get(BASE, ()), *_of_others(found)]
    return found


def _of_others(pairs: Mapping[str, Sequence[ScoredPair]]) -> list[ScoredPair]:
    """Training pairs of runs that the base model does not have, each set once."""
    trained = {name: [pair for pair in own if pair.prompt_set == TRAINING_PROMPTS] for name, own in pairs.items()}
    known = [{pair.place for pair in trained.get(BASE, ())}]
    found: list[ScoredPair] = []
    for name, own in trained.items():
        places = {pair.place for pair in own}
        if places and places not in known:
            known.append(places)
            found += [replace(pair, prompt_set=f"{TRAINING_PROMPTS}/{name}") for pair in own]
    return found


def _name(drawn: Recipe) -> str:
    return f"{FRESH}-{fingerprint(drawn)}"
