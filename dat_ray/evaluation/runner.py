"""Runs one suite: lets every attack make its prompts, then asks each model in turn, and stores every answer.

What the attacker model writes comes first. Samplers and the first model work at the same time where the cluster has room for
both; two target models never do.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dat_ray.data.shards import join
from dat_ray.engines.pool_size import beside, fits, smallest
from dat_ray.engines.roles import Engines
from dat_ray.errors import InputError
from dat_ray.evaluation.asking import AttemptStores, ModelSession
from dat_ray.evaluation.attacker import Attacker
from dat_ray.evaluation.benchmarks import utility
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.drawing import Samplers
from dat_ray.evaluation.drift import base_of, drift
from dat_ray.evaluation.gap_metrics import distribution_gap
from dat_ray.evaluation.gap_results import DistributionGap
from dat_ray.evaluation.judges import judge_pools, start_judges
from dat_ray.evaluation.questions import SIDE_EFFECTS_FOLDER
from dat_ray.evaluation.results import SideEffects
from dat_ray.evaluation.risk_rows import measure_risks
from dat_ray.evaluation.suite import Suite
from dat_ray.evaluation.target_likelihood import measure_likelihoods
from dat_ray.evaluation.targets import TargetEngines
from dat_ray.progress import ProgressCounter


@dataclass
class Found:
    """What is known after a run of a suite, besides the rows in its stores.

    Attributes:
        judges: the facts (`JudgeFacts`) of `judge`, `second_judge` (or None) and `refusal_judge`.
        side_effects: of each model, by its name.
    """

    judges: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    side_effects: dict[str, SideEffects] = field(default_factory=dict)


def run_suite(suite: Suite, engines: Engines, counter: ProgressCounter) -> Found:
    """Does what is missing of a suite.

    Args:
        suite: what to do.
        engines: how each role's engine is made.
        counter: of the rows that are done.

    Raises:
        InputError: the cluster has no room for models that work at the same time.
        DatError: too many rows failed, or an engine did.
    """
    recipe, found = suite.recipe, Found()
    _check_room(suite)
    stores = AttemptStores(suite.answered, suite.attempts, suite.searches)
    samplers = Samplers(recipe, engines, suite.prompts, counter)
    attacker = Attacker(recipe, engines, suite.rewrites, counter)
    with ExitStack() as stack:
        judges = start_judges(recipe, engines, stack)
        with attacker.open():
            for attack in suite.attacks:
                attack.write(attacker)
        stack.enter_context(samplers.open())
        for attack in suite.drawing:
            attack.draw(samplers)
        targets = stack.enter_context(_targets(suite, engines))
        for model in suite.models:
            with attacker.open():
                asked = partial(targets.of, model)
                session = ModelSession(model, recipe, suite.name, stores, judges, attacker, asked, counter)
                _ask_model(suite, session)
            targets.leave()
            folder = join(suite.folder, SIDE_EFFECTS_FOLDER)
            if model.answers is None:
                base = base_of(recipe, model, suite.models)
                answered = [] if base is None else [row for row in stores.attempts.rows() if row["model"] == base.name]
                moved = drift(recipe, suite.run_dir, model, folder, answered)
                gap = _gap(suite, model, counter)
                found.side_effects[model.name] = SideEffects(moved, utility(recipe, model, folder), gap)
            else:
                found.side_effects[model.name] = SideEffects()
        found.judges = judges.about()
    return found


def _targets(suite: Suite, engines: Engines) -> TargetEngines:
    recipe, cluster, config = suite.recipe, suite.recipe.cluster, suite.recipe.evaluation
    together = suite.attacker_works_beside_targets
    pool = beside(cluster.target, cluster.attacker, *judge_pools(recipe).values()) if together else cluster.target
    # These load the model once more, where its engines were.
    searched = any(attack.planned().searched for attack in suite.attacks)
    loaded_again = searched or suite.pairs or config.kl_rows or config.utility.tasks
    return TargetEngines(recipe, engines, pool, stay=not loaded_again)


def _check_room(suite: Suite) -> None:
    cluster = suite.recipe.cluster
    least = map(smallest, (cluster.attacker, cluster.target, *judge_pools(suite.recipe).values()))
    if suite.attacker_works_beside_targets and not fits(*least):
        remedy = "attacker, target and judges work at the same time, and there is no room for all: lower num_cpus or num_gpus"
        raise InputError("cluster.attacker", cluster.attacker.model_dump(exclude_defaults=True), remedy)


def _ask_model(suite: Suite, session: ModelSession) -> None:
    """Searches, look-alikes, attacks, log p of the targets; attacks whose prompts a sampler may still be drawing come last."""
    if session.model.answers is not None:
        # Its answers are in files: there is nobody who could be asked anything else.
        for attack in suite.attacks:
            if attack.has_answers:
                attack.ask(session)
            else:
                session.skip(attack.planned().asked)
        if suite.harmless is not None:
            session.skip(suite.harmless.planned().asked)
        session.skip(len(suite.look_alikes) + sum(len(behavior.targets) for behavior in suite.behaviors))
        return
    for attack in suite.attacks:
        attack.search(session)
    session.ask(suite.look_alikes)
    for attack in suite.attacks:
        if attack.prompts_folder is None:
            attack.ask(session)
    measure_likelihoods(
        suite.recipe, suite.name, session.model, suite.behaviors, session.target, suite.likelihoods, session.counter
    )
    for attack in suite.drawing:
        if attack.prompts_folder is not None:
            attack.ask(session)


def _gap(suite: Suite, model: Model, counter: ProgressCounter) -> DistributionGap | None:
    """The model's distribution gap; None where it is not measured."""
    recipe, pairs = suite.recipe, suite.pairs.get(model.name)
    if recipe.evaluation.gap is None or not pairs:
        return None
    rows = measure_risks(recipe, suite.name, model, pairs, suite.risks, counter)
    return distribution_gap(rows, recipe.evaluation.gap, recipe.training.attack.steps, recipe.evaluation.confidence)
