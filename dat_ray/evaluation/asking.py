"""Asks one model everything: questions of the attacks, harmless look-alikes, and log p of the held-out targets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.rundir import FIRST_ROUND
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.workers import Workers
from dat_ray.evaluation import answers
from dat_ray.evaluation.answers import Answer, Failure
from dat_ray.evaluation.attacks import Behavior, Question
from dat_ray.evaluation.scoring import Judges, Row
from dat_ray.evaluation.shelf import Chunk, Shelf, chunks
from dat_ray.progress import Progress


class Counter:
    """Rows done, counted from several threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._lock = progress, 0, threading.Lock()

    def add(self, rows: int, note: str) -> None:
        """Counts rows that are on disk now."""
        with self._lock:
            self._done += rows
            self._progress.update(self._done, note)


@dataclass(frozen=True)
class Model:
    """A model under evaluation.

    Attributes:
        name: `base`, `adapted`, or as the user named it.
        adapter: LoRA adapter folder; None for the model as it is.
        weights: changes with the weights.
        source: hub id or folder of a model other than the recipe's target; None for that one.
    """

    name: str
    adapter: str | None
    weights: str
    source: str | None = None

    def config(self, target: TargetConfig) -> TargetConfig:
        """How it is served: as the recipe's target is."""
        return target.model_copy(update={"model": self.source or target.model})


def sampling_chunks(recipe: Recipe, requests: Sequence[dict[str, Any]]) -> list[Chunk[dict[str, Any]]]:
    """Work of the sampler, one chunk a shard."""
    ids = [row["candidate_id"] for row in requests]
    return list(chunks("prompts", ids, requests, recipe.generation.rows_per_block))


def draw_prompts(
    config: SamplerConfig, todo: Sequence[Chunk[dict[str, Any]]], sampler: Workers, shelf: Shelf, counter: Counter
) -> None:
    """In-paints the prompts of the chunks (rows of schema REQUESTS) and stores them as CANDIDATES."""
    payloads = [
        (
            [InfillRequest(r["candidate_id"], r["target"], r["prompt_tokens"], r["seed"]) for r in chunk.items],
            config.batch_size,
        )
        for chunk in todo
    ]
    for index, results in sampler.map(answers.sample, payloads):
        chunk = todo[index]
        rows = []
        for row, result in zip(chunk.items, results, strict=True):
            if isinstance(result, Failure):
                rows.append(row | {"error": f"sampler: {result.error}"})
            else:
                assert result.row_id == row["candidate_id"], "the sampler answers in the order it was asked"
                drawn = {"prompt": result.prompt, "nfe": result.nfe, "sample_logprob": result.logprob}
                rows.append(row | drawn | {"error": None})
        shelf.put(chunk, rows)
        counter.add(len(rows), "prompts")


def question_chunks(recipe: Recipe, suite: str, model: Model, questions: Sequence[Question]) -> list[Chunk[Question]]:
    """Work of a target: chunks of one attack each, one a shard."""
    found: list[Chunk[Question]] = []
    for attack in dict.fromkeys(question.attack for question in questions):
        of_attack = [question for question in questions if question.attack == attack]
        found += cut(recipe, suite, model, of_attack, f"{model.name}-{attack}")
    return found


def cut(recipe: Recipe, suite: str, model: Model, questions: Sequence[Question], stem: str) -> list[Chunk[Question]]:
    """Questions of one attack in chunks with this stem."""
    ids = [question.attempt_id(suite, model.name, model.weights) for question in questions]
    return list(chunks(stem, ids, questions, recipe.generation.rows_per_block))


# What the judges read in place of a completion, for some rows of a chunk: row number -> text.
Translate = Callable[[Chunk[Question], Sequence[Row]], dict[int, str | Failure]]


@dataclass(frozen=True)
class Asking:
    """Where questions go: answers are stored before a judge sees them, so that no model is asked twice.

    Attributes:
        recipe: resolved.
        answered: answers that no judge has read yet.
        attempts: the finished rows.
        judges: one or two.
        counter: of the rows that are done.
    """

    recipe: Recipe
    answered: Shelf
    attempts: Shelf
    judges: Judges
    counter: Counter

    def ask(
        self,
        model: Model,
        wanted: Sequence[Chunk[Question]],
        target: Callable[[], Workers],
        translate: Translate | None = None,
    ) -> None:
        """Lets the target answer what is not answered yet, and the judges read; one shard a chunk.

        Args:
            model: who is asked.
            wanted: all chunks; those that are stored are counted and left alone.
            target: its workers, started only if something is missing.
            translate: gives the text for the judges where it is not the answer itself.
        """
        todo = self.attempts.missing(wanted)
        self.counter.add(sum(len(c.items) for c in wanted) - sum(len(c.items) for c in todo), model.name)
        unanswered = self.answered.missing(todo)
        for chunk in todo:
            if chunk not in unanswered:
                self._finish(model, chunk, translate)
        if not unanswered:
            return
        payloads = [self._payload(chunk) for chunk in unanswered]
        for index, replies in target().map(answers.complete, payloads):
            chunk = unanswered[index]
            self.answered.put(chunk, _answered(model, chunk, replies))
            self._finish(model, chunk, translate)

    def finish(self, model: Model, chunk: Chunk[Any], rows: list[Row]) -> None:
        """Rows that have been answered already, straight to the judges."""
        self.judges.fill_in(rows)
        self.attempts.put(chunk, rows)
        self.counter.add(len(rows), f"{model.name}, {rows[0]['attack']}")

    def _finish(self, model: Model, chunk: Chunk[Question], translate: Translate | None) -> None:
        rows = self.answered.of(chunk)
        if translate is not None:
            for number, text in translate(chunk, rows).items():
                if isinstance(text, Failure):
                    rows[number]["error"] = text.error
                else:
                    rows[number]["judged_text"] = text
        self.finish(model, chunk, rows)
        self.answered.remove(chunk)

    def _payload(self, chunk: Chunk[Question]) -> tuple:
        asked = [question for question in chunk.items if question.prompt is not None]
        temperatures = {question.temperature for question in asked}
        assert len(temperatures) <= 1, "a chunk is of one attack"
        return (
            [question.prompt for question in asked],
            self.recipe.evaluation.max_new_tokens,
            self.recipe.target.batch_size,
            next(iter(temperatures), 0.0),
            [question.seed or 0 for question in asked],
            [question.prefill or "" for question in asked] if any(question.prefill for question in asked) else None,
        )


def _answered(model: Model, chunk: Chunk[Question], replies: Sequence[Answer]) -> list[Row]:
    waiting = iter(replies)
    rows = []
    for identifier, question in zip(chunk.ids, chunk.items, strict=True):
        if question.prompt is None:
            reply = Answer(None, 0.0, question.error or "no prompt")
        else:
            reply = next(waiting)
            if reply.error:
                reply = replace(reply, error=f"target: {reply.error}")
        rows.append(attempt_row(model, identifier, question, reply))
    return rows


def attempt_row(model: Model, identifier: str, question: Question, reply: Answer) -> Row:
    """A row of schema ATTEMPTS without verdicts."""
    return {
        "attempt_id": identifier,
        "model": model.name,
        "attack": question.attack,
        "behavior_id": question.behavior_id,
        "attempt_index": question.attempt_index,
        "goal": question.goal,
        "prompt": question.prompt,
        "completion": reply.text,
        "seconds": reply.seconds,
        # What the attempt cost: what its prompt cost, and one query of the target.
        "model_calls": question.model_calls + (question.prompt is not None),
        "error": reply.error,
        "seed": question.seed,
        "temperature": question.temperature,
        "prefill": question.prefill,
        "judged_text": None,
    }


def likelihood_chunks(recipe: Recipe, suite: str, model: Model, behaviors: Sequence[Behavior]) -> list[Chunk[dict[str, Any]]]:
    """Work of measuring log p(target | goal): rows of schema CANDIDATES with the goal as the prompt."""
    rows: list[dict[str, Any]] = []
    for behavior in behaviors:
        for target_index, target in behavior.targets:
            rows.append(
                {
                    "candidate_id": row_id(
                        "target_logprob", suite, model.name, model.weights, behavior.behavior_id, target_index, target
                    ),
                    "behavior_id": behavior.behavior_id,
                    "target_index": target_index,
                    "round": FIRST_ROUND,
                    "sample_index": 0,
                    "goal": behavior.goal,
                    "target": target,
                    "refusal": "",
                    # Nothing was sampled: the goal itself is the prompt.
                    "prompt_tokens": 0,
                    "seed": 0,
                    "sampler": "",
                    "prompt": behavior.goal,
                    "target_model": model.name,
                    "adapter": model.weights if model.adapter else None,
                    "error": None,
                }
            )
    ids = [row["candidate_id"] for row in rows]
    return list(chunks(model.name, ids, rows, recipe.generation.rows_per_block))


def score_targets(
    recipe: Recipe, model: Model, todo: Sequence[Chunk[dict[str, Any]]], target: Workers, shelf: Shelf, counter: Counter
) -> None:
    """Fills in `target_logprob` = mean log p(target | goal), nats a token, end of turn left out."""
    payloads = [([(row["prompt"], row["target"]) for row in chunk.items], recipe.target.batch_size) for chunk in todo]
    for index, values in target.map(answers.logprob, payloads):
        chunk = todo[index]
        rows = [
            row | ({"error": f"target: {value.error}"} if isinstance(value, Failure) else {"target_logprob": value})
            for row, value in zip(chunk.items, values, strict=True)
        ]
        shelf.put(chunk, rows)
        counter.add(len(rows), f"{model.name}, log p(target)")
