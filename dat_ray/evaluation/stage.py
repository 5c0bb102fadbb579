"""`evaluate`: attacks on several models, by default the base and the fine-tuned one, stored attempt by attempt.

Prompts that don't depend on the attacked model are made once and stored; then each model answers the same questions, the
judges score the answers, and every chunk becomes a shard. A shard that is there is not asked again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dat_ray.config.models import TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import exists, has_manifest, join, read_file, read_manifest
from dat_ray.data.stored import stored_object
from dat_ray.engines.pinning import JUDGES, pinned, prompts_of
from dat_ray.engines.roles import Engines
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import OPTION, Model, own_models
from dat_ray.evaluation.gap_pairs import ScoredPair
from dat_ray.evaluation.judges import JUDGE_READERS
from dat_ray.evaluation.lm_eval_tasks import check_tasks
from dat_ray.evaluation.record import RECORD, write_record
from dat_ray.evaluation.registry import check_attacks, chosen_attacks
from dat_ray.evaluation.results import Metrics, load_metrics, store_metrics
from dat_ray.evaluation.runner import run_suite
from dat_ray.evaluation.suite import Suite
from dat_ray.evaluation.summary import StoredRows, suite_metrics
from dat_ray.models.hub import with_revision
from dat_ray.models.identity import check_weights, models_of, pinned_revision
from dat_ray.progress import Progress, ProgressCounter
from dat_ray.raysession import start_ray


@dataclass(frozen=True)
class EvaluationReport:
    """What the stage made.

    Attributes:
        rows: attempts of all models.
        errors: attempts that failed.
        model_calls: sampler's forward passes and target's answers, over all attempts.
        seconds: wall clock of this call; 0 where everything was there.
        skipped: whether everything was there.
        metrics: as in `metrics.json`.
    """

    rows: int
    errors: int
    model_calls: int
    seconds: float
    skipped: bool
    metrics: Metrics


def evaluate(
    recipe: Recipe,
    run: RunDir,
    suite: str = "default",
    engines: Engines | None = None,
    models: Sequence[Model] | None = None,
    drawn: Mapping[str, Sequence[ScoredPair]] | None = None,
) -> EvaluationReport:
    """Attacks each model, and measures over-refusal and log p of the held-out targets.

    Starts Ray, or joins the cluster that is there. What an earlier call stored is kept and not asked again.

    Args:
        recipe: resolved recipe.
        run: its run directory, with `behaviors.parquet` and, unless `models` are given, the round's adapter.
        suite: name of the evaluation; the folder below `evaluation/`.
        engines: how each role's engine is made; default: the recipe's backends.
        models: whom to attack, the first being the one the others are compared with; default: base and fine-tuned.
        drawn: by model, prompts of its run's training and fresh ones, whose distribution gap is measured; None: it is not.

    Raises:
        InputError: no adapter yet, or what is stored belongs to other settings, another adapter or other weights.
        DatError: too many rows failed, an engine failed or did not start, or nothing moved for
            `timeouts.no_progress` seconds.
    """
    started = time.monotonic()
    root, mark = run.evaluation(suite), run.fingerprint_of(recipe)
    models = own_models(recipe, run) if models is None else models
    check_attacks(recipe)
    weights, models = _check_weights(recipe, run, suite, models)
    if has_manifest(root):
        read_manifest(root, fingerprint=mark)
        return _earlier(root, models, recipe)
    check_tasks(recipe.evaluation.utility)
    kept = pinned(recipe, run.root, "sampler", "target", "judge", "encoder", "evaluation")
    work = Suite(kept, run, suite, models, read_file(run.behaviors), weights, drawn)
    # Before anything is asked: a file that changes meanwhile is not taken for the one that was used.
    inputs = _inputs(recipe)
    with start_ray(recipe.cluster), Progress("evaluate", work.total) as progress:
        found = run_suite(work, engines or Engines(), ProgressCounter(progress))
    metrics = suite_metrics(
        recipe,
        suite,
        {model.name: model.weights for model in models},
        StoredRows(
            attempts=work.attempts.rows(),
            likelihoods=work.likelihoods.rows(),
            prompts={attack.name: work.prompts[attack.name].rows() for attack in work.attacks if attack.name in work.prompts},
            searches=work.searches.rows(),
        ),
        judges=found.judges,
        side_effects=found.side_effects,
        seconds=time.monotonic() - started,
    )
    abouts = {attack.name: about for attack in work.attacks if (about := attack.about())}
    store_metrics(root, metrics := metrics.model_copy(update={"about_attacks": abouts}))
    write_record(root, recipe, suite, models, inputs)
    work.publish(mark)
    return _report(metrics, time.monotonic() - started, skipped=False)


def _check_weights(recipe: Recipe, run: RunDir, suite: str, models: Sequence[Model]) -> tuple[dict[str, str | None], list[Model]]:
    """Compares the weights of all models with those that the run and the suite began with.

    Returns:
        Those of the recipe's models that the suite asks, by field; and the models under evaluation, each at the commit at
        which the suite began.
    """
    sections = [
        *(["target"] if any(model.source is None and model.answers is None for model in models) else []),
        *(field for kind in chosen_attacks(recipe.evaluation).values() for field in kind.needs),
        *(["sampler"] if recipe.behaviors.harmless_heldout is not None else []),
        *(["encoder"] if recipe.evaluation.min_goal_similarity is not None else []),
        "evaluation.attacker",
        *JUDGE_READERS,
    ]
    weights = check_weights(run.root, models_of(recipe, *sections), prompts_of(recipe, *JUDGES))
    # The models' own, since another suite may ask another model under the same name.
    own = with_revision(recipe.target.model, recipe.target.revision)
    asked = {f"models.{model.name}": model.source or own for model in models if model.answers is None}
    began = check_weights(run.evaluation(suite), asked)
    return weights, [_kept(model, recipe.target, began.get(f"models.{model.name}")) for model in models]


def _kept(model: Model, target: TargetConfig, weights: str | None) -> Model:
    """A model whose branch is replaced by the commit that it was when the suite began; `target` itself is pinned by the run."""
    if model.source is None:
        return model
    config = model.config(target)
    return replace(model, source=with_revision(config.model, pinned_revision(config, weights, OPTION)))


def _inputs(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that a recipe's attacks read, by field."""
    kinds = chosen_attacks(recipe.evaluation).values()
    return {field: digest for kind in kinds for field, digest in kind.inputs(recipe).items()}


def _earlier(root: str, models: Sequence[Model], recipe: Recipe) -> EvaluationReport:
    metrics = load_metrics(root)
    names = [model.name for model in models]
    if list(metrics.models) != names:
        remedy = f"holds an evaluation of {', '.join(metrics.models)}, not of {', '.join(names)}: name another --suite"
        raise InputError("--suite", root, remedy)
    for model in models:
        if metrics.models[model.name].weights != model.weights:
            remedy = f"holds an evaluation of another {model.name} model: remove that folder and run again"
            raise InputError("--run-dir", root, remedy)
    _check_inputs(root, recipe)
    return _report(metrics, 0.0, skipped=True)


def _check_inputs(root: str, recipe: Recipe) -> None:
    """Refuses a finished evaluation whose files have changed since; one of an older version did not record them."""
    record = join(root, RECORD)
    recorded = (stored_object(record).get("inputs") or {}) if exists(record) else {}
    for field, digest in _inputs(recipe).items() if recorded else ():
        if recorded.get(field, digest) != digest:
            remedy = f"the file has changed since {root} was made of it: restore it, or evaluate in another directory"
            raise InputError(field, digest, remedy)


def _report(metrics: Metrics, seconds: float, *, skipped: bool) -> EvaluationReport:
    calls = sum(metrics.model_calls.values())
    return EvaluationReport(metrics.attempts, metrics.errors, calls, seconds, skipped, metrics)
