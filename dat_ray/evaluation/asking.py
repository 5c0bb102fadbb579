"""Asks one model everything: questions of the attacks, harmless look-alikes, and log p of the held-out targets."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.workers import Workers
from dat_ray.evaluation import answers
from dat_ray.evaluation.answers import Answer, Failure
from dat_ray.evaluation.attacks import Behavior, Question
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


def sampling_chunks(recipe: Recipe, requests: Sequence[dict[str, Any]]) -> list[Chunk[dict[str, Any]]]:
    """Work of the sampler, one chunk a shard."""
    ids = [row["candidate_id"] for row in requests]
    return list(chunks("prompts", ids, requests, recipe.generation.rows_per_block))


def draw_prompts(recipe: Recipe, todo: Sequence[Chunk[dict[str, Any]]], sampler: Workers, shelf: Shelf, counter: Counter) -> None:
    """In-paints the prompts of the chunks (rows of schema REQUESTS) and stores them as CANDIDATES."""
    payloads = [
        (
            [InfillRequest(r["candidate_id"], r["target"], r["prompt_tokens"], r["seed"]) for r in chunk.items],
            recipe.sampler.batch_size,
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
        ids = [question.attempt_id(suite, model.name, model.weights) for question in of_attack]
        found += chunks(f"{model.name}-{attack}", ids, of_attack, recipe.generation.rows_per_block)
    return found


def ask(
    recipe: Recipe,
    model: Model,
    todo: Sequence[Chunk[Question]],
    target: Workers,
    judge: Workers,
    shelf: Shelf,
    counter: Counter,
) -> None:
    """Lets the target answer the chunks' questions greedily and the judge score the answers; one shard a chunk."""
    payloads = [
        (
            [question.prompt for question in chunk.items if question.prompt is not None],
            recipe.evaluation.max_new_tokens,
            recipe.target.batch_size,
        )
        for chunk in todo
    ]
    for index, replies in target.map(answers.complete, payloads):
        rows = _judged(recipe, model, todo[index], replies, judge)
        shelf.put(todo[index], rows)
        counter.add(len(rows), f"{model.name}, {todo[index].items[0].attack}")


def _judged(
    recipe: Recipe, model: Model, chunk: Chunk[Question], replies: Sequence[Answer], judge: Workers
) -> list[dict[str, Any]]:
    waiting = iter(replies)
    answered = [
        Answer(None, 0.0, question.error or "no prompt") if question.prompt is None else next(waiting) for question in chunk.items
    ]
    answered = [
        replace(reply, error=f"target: {reply.error}") if question.prompt is not None and reply.error else reply
        for question, reply in zip(chunk.items, answered, strict=True)
    ]
    triples = [
        (question.goal, question.prompt, reply.text)
        for question, reply in zip(chunk.items, answered, strict=True)
        if reply.text is not None
    ]
    [(_, verdicts)] = judge.map(answers.judge, [(triples, recipe.target.batch_size)])
    found = iter(verdicts)
    rows = []
    for identifier, question, reply in zip(chunk.ids, chunk.items, answered, strict=True):
        row: dict[str, Any] = {
            "attempt_id": identifier,
            "model": model.name,
            "attack": question.attack,
            "behavior_id": question.behavior_id,
            "attempt_index": question.attempt_index,
            "goal": question.goal,
            "prompt": question.prompt,
            "completion": reply.text,
            "seconds": reply.seconds,
            # What the attempt cost: the sampler's forward passes for the prompt, and one query of the target.
            "model_calls": question.model_calls + (question.prompt is not None),
            "error": reply.error,
        }
        if reply.text is not None:
            verdict = next(found)
            if isinstance(verdict, Failure):
                row["error"] = f"judge: {verdict.error}"
            else:
                row |= {"judge": judge.about["name"], "verdict": verdict.verdict, "score": verdict.score}
        rows.append(row)
    return rows


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
                    "round": recipe.round,
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
