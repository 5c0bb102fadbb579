"""The work of one evaluation: what is known in advance, what has to be found out, and in which order it is done.

Prompts that an attacker model rewrites come first, then each model is asked in turn; the sampler and the first model work
at the same time where the cluster has room for both, two target models never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import ATTEMPTS, CANDIDATES, REWRITES, SEARCHES
from dat_ray.data.shards import join
from dat_ray.engines.workers import Workers, fits
from dat_ray.errors import InputError
from dat_ray.evaluation.adaptive import GRADIENT_ATTACKS, back_translate, finish_embedding, run_pair, run_searches, suffixed
from dat_ray.evaluation.asking import (
    Asking,
    Counter,
    Model,
    draw_prompts,
    likelihood_chunks,
    question_chunks,
    sampling_chunks,
    score_targets,
)
from dat_ray.evaluation.attacker import Attacker
from dat_ray.evaluation.attacks import Question, Scope, behaviors_of, held_out, look_alikes
from dat_ray.evaluation.attacks.best_of_n import best_of_n
from dat_ray.evaluation.attacks.direct import direct, prefilling
from dat_ray.evaluation.attacks.inpainting import HELDOUT, INPAINTING, SECTIONS, infill_requests, inpainting, samplers
from dat_ray.evaluation.attacks.rewriting import UNREADABLE, Rewriting, rewritten, tense_requests, translation_requests
from dat_ray.evaluation.attacks.templates import load_templates, templated
from dat_ray.evaluation.results import Metrics
from dat_ray.evaluation.scoring import start_judges
from dat_ray.evaluation.shelf import Shelf
from dat_ray.evaluation.side_effects import drift, require_lm_eval, utility
from dat_ray.evaluation.summary import SideEffects, suite_metrics
from dat_ray.generation.actors import Engines
from dat_ray.generation.ledger import ErrorLimit
from dat_ray.models.identity import sampler_fingerprint

LIKELIHOODS = "target_logprob"
# Folder of the prompts that each sampler drew.
PROMPTS = {INPAINTING: "prompts", HELDOUT: "prompts_heldout"}


class Evaluation:
    """One suite on one run directory.

    Args:
        recipe: resolved.
        run: where behaviors, and what the suite leaves, lie.
        suite: its name.
        models: whom to attack.
        engines: how each role's engine is made.
        behaviors: rows of schema BEHAVIORS.
        weights: by field, of `check_weights`.

    Attributes:
        total: rows to make, for the progress bar.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDir,
        suite: str,
        models: Sequence[Model],
        engines: Engines,
        behaviors: pa.Table,
        weights: Mapping[str, str | None],
    ) -> None:
        self.recipe, self.run_dir, self.suite, self.models, self.engines = recipe, run, suite, models, engines
        self.scope = Scope(suite, recipe.seed)
        self.behaviors = held_out(behaviors)
        self.known = self._known(behaviors)
        config = recipe.evaluation
        self.rewritings = [
            *tense_requests(self.behaviors, config, self.scope),
            *translation_requests(self.behaviors, config, self.scope),
        ]
        self.requests = {
            attack: infill_requests(
                recipe, suite, self.behaviors, sampler, sampler_fingerprint(sampler, weights[f"{SECTIONS[attack]}.model"])
            )
            for attack, sampler in samplers(recipe).items()
        }
        self.side_effects: dict[str, SideEffects] = {}
        if config.utility.tasks:
            require_lm_eval()
        self._open_shelves(run.evaluation(suite))

    def _known(self, behaviors: pa.Table) -> list[Question]:
        config = self.recipe.evaluation
        makers: dict[str, Callable[[], list[Question]]] = {
            "direct": lambda: direct(self.behaviors, config.direct, self.scope),
            "prefilling": lambda: prefilling(self.behaviors),
            "best_of_n": lambda: best_of_n(self.behaviors, config.best_of_n, self.scope),
            "templates": lambda: templated(self.behaviors, load_templates(config.templates_path or "")),
        }
        found = [question for name in config.attacks if name in makers for question in makers[name]()]
        return found + look_alikes(behaviors_of(behaviors, "over_refusal"))

    def _open_shelves(self, root: str) -> None:
        rate, models = self.recipe.generation.max_error_rate, len(self.models)
        drawn = sum(map(len, self.requests.values()))
        config, behaviors = self.recipe.evaluation, len(self.behaviors)
        steps = config.pair.steps * config.pair.streams * behaviors if "pair" in config.attacks else 0
        suffixes = config.gcg.attempts * behaviors if "gcg" in config.attacks else 0
        embedded = behaviors if "embedding" in config.attacks else 0
        back = len(self.behaviors) * len(config.translation.languages) if self._translates_back() else 0
        searches = models * behaviors * sum(attack in config.attacks for attack in GRADIENT_ATTACKS)
        asked = models * (len(self.known) + drawn + len(self.rewritings) + steps + suffixes + embedded)
        written = len(self.rewritings) + models * (steps + back)
        targets = models * sum(len(behavior.targets) for behavior in self.behaviors)
        self.prompts = {
            attack: Shelf(join(root, PROMPTS[attack]), CANDIDATES, "candidate_id", ErrorLimit(len(rows), rate))
            for attack, rows in self.requests.items()
        }
        self.likelihoods = Shelf(join(root, LIKELIHOODS), CANDIDATES, "candidate_id", ErrorLimit(targets, rate))
        self.rewrites = Shelf(join(root, "rewrites"), REWRITES, "rewrite_id", ErrorLimit(written, rate))
        self.searches = Shelf(join(root, "searches"), SEARCHES, "search_id", ErrorLimit(searches, rate))
        # A prompt that was never drawn fails once for each model: the sampler's limit has spoken already.
        limit = ErrorLimit(asked, min(1.0, 2 * rate))
        self.answered = Shelf(join(root, "answered"), ATTEMPTS, "attempt_id", limit, excused=UNREADABLE)
        self.attempts = Shelf(root, ATTEMPTS, "attempt_id", limit, excused=UNREADABLE)
        self.total = drawn + asked + targets + written + searches

    def _translates_back(self) -> bool:
        config = self.recipe.evaluation
        return "translation" in config.attacks and config.translation.back

    def run(self, counter: Counter) -> None:
        """Does what is missing."""
        cluster = self.recipe.cluster
        both = "pair" in self.recipe.evaluation.attacks or self._translates_back()
        if both and not fits(cluster.attacker, cluster.target, cluster.judge):
            remedy = "attacker and target work at the same time, and the cluster has no room for both: lower num_cpus or num_gpus"
            raise InputError("cluster.attacker", cluster.attacker.model_dump(exclude_defaults=True), remedy)
        with ExitStack() as stack:
            judges = start_judges(self.recipe, self.engines, stack)
            asking = Asking(self.recipe, self.answered, self.attempts, judges, counter)
            attacker = Attacker(self.recipe, self.engines, self.rewrites, counter)
            known = self.known + self._rewritten(attacker)
            drawn = self._sampling(stack, counter)
            for model in self.models:
                self._ask_model(model, known, drawn, asking, attacker)
                folder = join(self.run_dir.evaluation(self.suite), "side_effects")
                moved = drift(self.recipe, self.run_dir, model, folder)
                self.side_effects[model.name] = SideEffects(moved, utility(self.recipe, model, folder))
            self.judges = judges.about()

    def _rewritten(self, attacker: Attacker) -> list[Question]:
        if not self.rewritings:
            return []
        found: list[Question] = []
        with attacker.open():
            for attack in dict.fromkeys(one.question.attack for one in self.rewritings):
                requests: list[Rewriting] = [one for one in self.rewritings if one.question.attack == attack]
                found += rewritten(requests, attacker.write(attack, requests))
        return found

    def _sampling(self, stack: ExitStack, counter: Counter) -> dict[str, Callable[[], list[Question]]]:
        """Starts what has to be drawn; gives for each in-painting attack a function that waits for its questions."""
        cluster = self.recipe.cluster
        together = fits(cluster.sampler, cluster.target, cluster.judge)
        # One thread: two samplers follow each other. Left in the reverse order of entering, so that where a target
        # fails, its sampler is killed before its thread is waited for.
        beside = stack.enter_context(ThreadPoolExecutor(1, "sampler"))
        killed = stack.enter_context(ExitStack())
        stack.callback(beside.shutdown, wait=False, cancel_futures=True)
        waits: dict[str, Future[None]] = {}
        for attack, config in samplers(self.recipe).items():
            wanted = sampling_chunks(self.recipe, self.requests[attack])
            todo = self.prompts[attack].missing(wanted)
            counter.add(len(self.requests[attack]) - sum(len(chunk.items) for chunk in todo), "prompts")
            if todo:
                waits[attack] = beside.submit(self._sample, killed, config, todo, self.prompts[attack], counter)
                if not together:
                    waits[attack].result()

        def questions(attack: str) -> list[Question]:
            if attack in waits:
                waits[attack].result()
            return inpainting(self.prompts[attack].rows(), attack)

        return {attack: partial(questions, attack) for attack in self.requests}

    def _sample(self, killed: ExitStack, config: SamplerConfig, todo: Any, shelf: Shelf, counter: Counter) -> None:
        pool = self.recipe.cluster.sampler
        build = partial(self.engines.sampler, config, pool.threads)
        # Its memory is free again before the next model is loaded.
        with killed.enter_context(Workers("sampler", build, pool, self.recipe.timeouts)) as sampler:
            draw_prompts(config, todo, sampler, shelf, counter)

    def _ask_model(
        self,
        model: Model,
        known: list[Question],
        drawn: dict[str, Callable[[], list[Question]]],
        asking: Asking,
        attacker: Attacker,
    ) -> None:
        """Searches, known questions, log p of the targets, PAIR, then the sampled questions as soon as they are there."""
        attacks = self.recipe.evaluation.attacks
        # Before the target starts: the same weights lie in memory once.
        searched = {
            attack: run_searches(self.recipe, model, attack, self.behaviors, self.scope, self.searches, asking)
            for attack in GRADIENT_ATTACKS
            if attack in attacks
        }
        if "embedding" in searched:
            finish_embedding(asking, model, self.suite, searched["embedding"], self.searches)
        if "gcg" in searched:
            known = known + suffixed(self.recipe, searched["gcg"], self.searches)
        with self._target(model) as target, attacker.open():
            plain = [one for one in known if one.attack != "translation" or not self._translates_back()]
            asking.ask(model, self._chunks(model, plain), target)
            translated = [one for one in known if one.attack == "translation" and self._translates_back()]
            languages = self.recipe.evaluation.translation.languages
            back = partial(back_translate, attacker, languages, model, self.scope)
            asking.ask(model, self._chunks(model, translated), target, back)
            if "pair" in attacks:
                run_pair(asking, model, self.behaviors, self.scope, attacker, target)
            wanted = likelihood_chunks(self.recipe, self.suite, model, self.behaviors)
            todo = self.likelihoods.missing(wanted)
            done = sum(len(chunk.items) for chunk in wanted) - sum(len(chunk.items) for chunk in todo)
            asking.counter.add(done, model.name)
            if todo:
                score_targets(self.recipe, model, todo, target(), self.likelihoods, asking.counter)
            for questions in drawn.values():
                asking.ask(model, self._chunks(model, questions()), target)

    def _chunks(self, model: Model, questions: list[Question]) -> list[Any]:
        return question_chunks(self.recipe, self.suite, model, questions)

    @contextmanager
    def _target(self, model: Model) -> Iterator[Callable[[], Workers]]:
        """The model's workers, started at the first call, so that a finished model is not loaded again."""
        pool = self.recipe.cluster.target
        build = partial(self.engines.target, model.config(self.recipe.target), pool.threads, model.adapter)
        with ExitStack() as stack:
            started: list[Workers] = []

            def target() -> Workers:
                if not started:
                    started.append(stack.enter_context(Workers("target", build, pool, self.recipe.timeouts)))
                return started[0]

            yield target

    def metrics(self, seconds: float) -> Metrics:
        """All of `metrics.json`, after `run`."""
        return suite_metrics(
            self.recipe,
            self.suite,
            {model.name: model.weights for model in self.models},
            attempts=self.attempts.rows(),
            likelihoods=self.likelihoods.rows(),
            prompts={attack: shelf.rows() for attack, shelf in self.prompts.items()},
            judges=self.judges,
            side_effects=self.side_effects,
            seconds=seconds,
        )

    def publish(self, fingerprint: str) -> None:
        """Writes the manifests, the attempts' own last."""
        # A finished attempt's translation is not looked at again.
        self.rewrites.take_all()
        shelves = [*self.prompts.values(), self.likelihoods, self.rewrites, self.searches]
        for shelf in shelves:
            if shelf.rows():
                shelf.publish(fingerprint)
        self.attempts.publish(fingerprint)
