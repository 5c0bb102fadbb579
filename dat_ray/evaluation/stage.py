"""`evaluate`: attacks on several models, by default the base and the fine-tuned one, stored attempt by attempt.

The in-painting attack's prompts are drawn once and stored; then each model answers the same questions, the judge scores
the answers, and every chunk becomes a shard. A shard that is there is not asked again. The sampler and the first model
work at the same time where the cluster has room for both; two target models never do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import ATTEMPTS, CANDIDATES
from dat_ray.data.shards import has_manifest, join, read_bytes, read_file, read_manifest, write_bytes
from dat_ray.engines.workers import Workers, fits
from dat_ray.errors import InputError
from dat_ray.evaluation.asking import (
    Counter,
    Model,
    ask,
    draw_prompts,
    likelihood_chunks,
    question_chunks,
    sampling_chunks,
    score_targets,
)
from dat_ray.evaluation.attacks import (
    Behavior,
    Question,
    behaviors_of,
    direct,
    held_out,
    infill_requests,
    inpainting,
    look_alikes,
)
from dat_ray.evaluation.diversity import diversity
from dat_ray.evaluation.metrics import METRICS, model_metrics, paired_metrics, totals
from dat_ray.evaluation.models import own_models
from dat_ray.evaluation.shelf import Chunk, Shelf
from dat_ray.generation.actors import Engines
from dat_ray.generation.ledger import ErrorLimit
from dat_ray.progress import Progress
from dat_ray.raysession import start_ray

PROMPTS, LIKELIHOODS = "prompts", "target_logprob"


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
    metrics: dict[str, Any]


def evaluate(
    recipe: Recipe,
    run: RunDir,
    suite: str = "default",
    engines: Engines | None = None,
    models: Sequence[Model] | None = None,
) -> EvaluationReport:
    """Attacks each model, and measures over-refusal and log p of the held-out targets.

    Starts Ray, or joins the cluster that is there. What an earlier call stored is kept and not asked again.

    Args:
        recipe: resolved recipe.
        run: its run directory, with `behaviors.parquet` and, unless `models` are given, the round's adapter.
        suite: name of the evaluation; the folder below `evaluation/`.
        engines: how each role's engine is made; default: the recipe's backends.
        models: whom to attack, the first being the one the others are compared with; default: base and fine-tuned.

    Raises:
        InputError: no adapter yet, or what is stored belongs to other settings or another adapter.
        DatError: too many rows failed, an engine failed or did not start, or nothing moved for
            `timeouts.no_progress` seconds.
    """
    started = time.monotonic()
    root, mark = run.evaluation(suite), fingerprint(recipe)
    models = own_models(recipe, run) if models is None else models
    if has_manifest(root):
        read_manifest(root, fingerprint=mark)
        return _earlier(root, models)
    engines = engines or Engines()
    work = _Evaluation(recipe, suite, root, models, engines, read_file(run.behaviors))
    with start_ray(recipe.cluster), Progress("evaluate", work.total) as progress:
        judge_facts = work.run(Counter(progress))
    metrics = work.metrics(judge_facts, time.monotonic() - started)
    write_bytes(join(root, METRICS), json.dumps(metrics, indent=1).encode())
    if work.requests:
        work.prompts.publish(mark)
    work.likelihoods.publish(mark)
    work.attempts.publish(mark)
    return _report(metrics, time.monotonic() - started, skipped=False)


class _Evaluation:
    """One suite on one run directory: the work that is known in advance, and how it is done."""

    def __init__(self, recipe: Recipe, suite: str, root: str, models: Sequence[Model], engines: Engines, behaviors: Any) -> None:
        self.recipe, self.suite, self.models, self.engines = recipe, suite, models, engines
        self.behaviors: list[Behavior] = held_out(behaviors)
        self.known: list[Question] = look_alikes(behaviors_of(behaviors, "over_refusal"))
        if "direct" in recipe.evaluation.attacks:
            self.known = direct(self.behaviors) + self.known
        self.requests: list[dict[str, Any]] = []
        if "inpainting" in recipe.evaluation.attacks:
            self.requests = infill_requests(recipe, suite, self.behaviors)
        targets = sum(len(behavior.targets) for behavior in self.behaviors)
        rate, asked = recipe.generation.max_error_rate, len(models) * (len(self.known) + len(self.requests))
        self.prompts = Shelf(join(root, PROMPTS), CANDIDATES, "candidate_id", ErrorLimit(len(self.requests), rate))
        self.likelihoods = Shelf(join(root, LIKELIHOODS), CANDIDATES, "candidate_id", ErrorLimit(len(models) * targets, rate))
        # A prompt that was never drawn fails once for each model: the sampler's limit has spoken already.
        self.attempts = Shelf(root, ATTEMPTS, "attempt_id", ErrorLimit(asked, min(1.0, 2 * rate)))
        self.total = len(self.requests) + asked + len(models) * targets

    def run(self, counter: Counter) -> dict[str, Any]:
        """Does what is missing; returns what the judge says about itself."""
        cluster, timeouts = self.recipe.cluster, self.recipe.timeouts
        wanted = sampling_chunks(self.recipe, self.requests)
        todo = self.prompts.missing(wanted)
        counter.add(len(self.requests) - sum(len(chunk.items) for chunk in todo), "prompts")
        together = fits(cluster.sampler, cluster.target, cluster.judge)
        # Left in the reverse order: where a target fails, its sampler is killed before its thread is waited for.
        with ExitStack() as stack:
            build = partial(self.engines.judge, self.recipe.judge)
            judge = stack.enter_context(Workers("judge", build, cluster.judge, timeouts))
            beside = stack.enter_context(ThreadPoolExecutor(1, "sampler"))
            if todo:
                draw = partial(self.engines.sampler, self.recipe.sampler, cluster.sampler.threads)
                sampler = stack.enter_context(Workers("sampler", draw, cluster.sampler, timeouts))
                sampling = beside.submit(self._sample, todo, sampler, counter)
                if not together:
                    sampling.result()

            def sampled() -> list[Question]:
                if todo:
                    sampling.result()
                return inpainting(self.prompts.rows())

            for model in self.models:
                self._ask_model(model, judge, sampled, counter)
            return judge.wait()

    def _sample(self, todo: list[Chunk[dict[str, Any]]], sampler: Workers, counter: Counter) -> None:
        with sampler:  # its memory is free again before the second model is loaded
            draw_prompts(self.recipe, todo, sampler, self.prompts, counter)

    def _ask_model(self, model: Model, judge: Workers, sampled: Callable[[], list[Question]], counter: Counter) -> None:
        """Questions that are known, then log p of the targets, then the sampled questions as soon as they are there."""
        recipe, pool = self.recipe, self.recipe.cluster.target
        config = recipe.target.model_copy(update={"model": model.source or recipe.target.model})
        build = partial(self.engines.target, config, pool.threads, model.adapter)
        with ExitStack() as stack:
            started: list[Workers] = []

            def target() -> Workers:
                # Started at the first missing chunk, so that a finished model is not loaded again.
                if not started:
                    started.append(stack.enter_context(Workers("target", build, pool, recipe.timeouts)))
                return started[0]

            def ask_all(questions: list[Question]) -> None:
                wanted = question_chunks(recipe, self.suite, model, questions)
                todo = self.attempts.missing(wanted)
                counter.add(len(questions) - sum(len(chunk.items) for chunk in todo), model.name)
                if todo:
                    ask(recipe, model, todo, target(), judge, self.attempts, counter)

            ask_all(self.known)
            wanted = likelihood_chunks(recipe, self.suite, model, self.behaviors)
            todo = self.likelihoods.missing(wanted)
            counter.add(sum(len(chunk.items) for chunk in wanted) - sum(len(chunk.items) for chunk in todo), model.name)
            if todo:
                score_targets(recipe, model, todo, target(), self.likelihoods, counter)
            ask_all(sampled())

    def metrics(self, judge: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The tree of `metrics.json`."""
        config, seed = self.recipe.evaluation, self.recipe.seed
        rows = {model.name: [r for r in self.attempts.rows() if r["model"] == model.name] for model in self.models}
        logprobs: dict[str, dict[str, list[float]]] = {model.name: {} for model in self.models}
        for row in self.likelihoods.rows():
            if row["target_logprob"] is not None:
                logprobs[row["target_model"]].setdefault(row["behavior_id"], []).append(row["target_logprob"])
        everything = [row for of_model in rows.values() for row in of_model]
        cost = totals(everything)
        return {
            "judge": judge,
            "models": {
                model.name: model_metrics(rows[model.name], logprobs[model.name], config, seed) | {"weights": model.weights}
                for model in self.models
            },
            "paired": paired_metrics(rows, logprobs, config, seed),
            "suite": self.suite,
            "confidence": config.confidence,
            "seed": seed,
            "attempts": len(everything),
            "errors": sum(row["error"] is not None for row in everything),
            "unparsed": {name: sum(r["verdict"] == "unparsed" for r in of_model) for name, of_model in rows.items()},
            "seconds": {"total": seconds} | {name: cost[name]["seconds"] for name in rows},
            "model_calls": {name: int(cost[name]["model_calls"]) for name in rows},
            "sampler": self._sampler_metrics(),
        }

    def _sampler_metrics(self) -> dict[str, Any] | None:
        if not self.requests:
            return None
        rows = self.prompts.rows()
        by_behavior: dict[str, list[str]] = {}
        for row in rows:
            if row["prompt"] is not None:
                by_behavior.setdefault(row["behavior_id"], []).append(row["prompt"])
        config = self.recipe.evaluation
        found = diversity(by_behavior, confidence=config.confidence, resamples=config.bootstrap, seed=self.recipe.seed)
        return {
            "diversity": found.as_dict(),
            "nfe": sum(row["nfe"] or 0 for row in rows),
            "errors": sum(row["error"] is not None for row in rows),
            "fingerprint": rows[0]["sampler"],
        }


def _earlier(root: str, models: Sequence[Model]) -> EvaluationReport:
    metrics = json.loads(read_bytes(join(root, METRICS)))
    names = [model.name for model in models]
    if list(metrics["models"]) != names:
        remedy = f"holds an evaluation of {', '.join(metrics['models'])}, not of {', '.join(names)}: name another --suite"
        raise InputError("--suite", root, remedy)
    for model in models:
        if metrics["models"][model.name]["weights"] != model.weights:
            remedy = f"holds an evaluation of another {model.name} model: remove that folder and run again"
            raise InputError("--run-dir", root, remedy)
    return _report(metrics, 0.0, skipped=True)


def _report(metrics: dict[str, Any], seconds: float, *, skipped: bool) -> EvaluationReport:
    calls = sum(metrics["model_calls"].values())
    return EvaluationReport(metrics["attempts"], metrics["errors"], calls, seconds, skipped, metrics)
