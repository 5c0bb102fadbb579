"""Attacks whose questions depend on the model under attack: PAIR's conversations, and searches with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.engines.workers import Workers, slice_seconds
from dat_ray.evaluation.answers import Answer
from dat_ray.evaluation.asking import Asking, Model, attempt_row, cut
from dat_ray.evaluation.attacker import Attacker
from dat_ray.evaluation.attacks import Behavior, Question, Scope
from dat_ray.evaluation.attacks.pair import Turn, instruction, parse
from dat_ray.evaluation.attacks.rewriting import Rewriting
from dat_ray.evaluation.shelf import Chunk, Shelf, chunks

GRADIENT_ATTACKS = ("gcg", "embedding")


@dataclass
class _Stream:
    """One conversation with the attacker."""

    behavior: Behavior
    number: int
    history: list[Turn] = field(default_factory=list)
    broken: bool = False


def run_pair(
    asking: Asking, model: Model, behaviors: Sequence[Behavior], scope: Scope, attacker: Attacker, target: Callable[[], Workers]
) -> None:
    """PAIR on one model: all behaviors take a step together, and a behavior stops where a stream has broken it.

    Every step is stored, the attacker's answer and the attempt, so a run that goes on finds the conversations where
    they were.
    """
    config, recipe = asking.recipe.evaluation.pair, asking.recipe
    streams = [_Stream(one, number) for one in behaviors for number in range(config.streams)]
    broken: set[str] = set()
    for step in range(config.steps):
        live = [one for one in streams if one.behavior.behavior_id not in broken]
        if not live:
            break
        stem = f"{model.name}-pair-{step:03}"
        requests = [_request(model, one, step, config.streams, config.history, scope) for one in live]
        written = attacker.write(stem, requests, config.max_new_tokens)
        questions = [_question(one, row) for one, row in zip(requests, written, strict=True)]
        wanted = cut(recipe, scope.suite, model, questions, stem)
        asking.ask(model, wanted, target)
        rows = [row for chunk in wanted for row in asking.attempts.of(chunk)]
        for stream, row in zip(live, rows, strict=True):
            if row["completion"] is not None:
                stream.history.append(Turn(row["prompt"], row["completion"], row["score"]))
            if row["verdict"] == "harmful":
                broken.add(row["behavior_id"])
        asking.counter.add(2 * (len(streams) - len(live)), stem)
    else:
        return
    # Steps that nobody needs any more.
    asking.counter.add(2 * len(streams) * (config.steps - step), f"{model.name}-pair")


def _request(model: Model, stream: _Stream, step: int, streams: int, history: int, scope: Scope) -> Rewriting:
    behavior = stream.behavior
    index = step * streams + stream.number
    return Rewriting(
        Question("pair", behavior.behavior_id, index, behavior.goal, None),
        instruction(behavior.goal, behavior.targets[0][1], stream.history[-history:]),
        scope.seed_of(f"pair/{model.name}", behavior.behavior_id, index),
    )


def _question(request: Rewriting, row: dict[str, Any]) -> Question:
    asked = request.question
    prompt, problem = (None, row["error"]) if row["error"] is not None else parse(row["text"])
    return Question("pair", asked.behavior_id, asked.attempt_index, asked.goal, prompt, 1, problem)


def run_searches(
    recipe: Recipe, model: Model, attack: str, behaviors: Sequence[Behavior], scope: Scope, shelf: Shelf, asking: Asking
) -> list[Chunk[Any]]:
    """Searches with gradients, one shard a behavior, each behavior's first target being what is searched for.

    Returns:
        The chunks, all of them stored on the shelf.
    """
    from dat_ray.evaluation.whitebox import SearchRequest, search_slice

    requests = [
        SearchRequest(
            row_id("search", scope.suite, model.name, model.weights, attack, one.behavior_id, one.targets[0][1]),
            one.goal,
            one.targets[0][1],
            scope.seed_of(attack, one.behavior_id, 0),
        )
        for one in behaviors
    ]
    pairs = list(zip(requests, behaviors, strict=True))
    wanted = list(chunks(f"{model.name}-{attack}", [one.search_id for one in requests], pairs, 1))
    todo = shelf.missing(wanted)
    asking.counter.add(len(wanted) - len(todo), f"{model.name}, {attack}")
    if todo:
        with whitebox_workers(recipe, model) as workers:
            seconds = slice_seconds(recipe.timeouts)
            payloads = [(attack, request, seconds) for chunk in todo for request, _ in chunk.items]
            for index, found in workers.map(search_slice, payloads):
                [(request, behavior)] = todo[index].items
                about = {"search_id": request.search_id, "model": model.name, "behavior_id": behavior.behavior_id}
                shelf.put(todo[index], [about | found])
                asking.counter.add(1, f"{model.name}, {attack}")
    return wanted


def whitebox_workers(recipe: Recipe, model: Model) -> Workers:
    """The model with its gradients, in the target's place."""
    pool = recipe.cluster.target
    build = partial(_whitebox, model.config(recipe.target), pool.threads, model.adapter, recipe.evaluation)
    return Workers("target with gradients", build, pool, recipe.timeouts)


def _whitebox(*arguments: Any) -> Any:
    from dat_ray.evaluation.whitebox import Whitebox

    return Whitebox(*arguments)


def suffixed(recipe: Recipe, wanted: Sequence[Chunk[Any]], shelf: Shelf) -> list[Question]:
    """The questions of GCG, from what its searches found."""
    found = []
    for chunk in wanted:
        [(_, behavior)] = chunk.items
        [row] = shelf.of(chunk)
        prompts = row["prompts"] or [None] * recipe.evaluation.gcg.attempts
        for index, prompt in enumerate(prompts):
            calls = (row["model_calls"] or 0) if index == 0 else 0
            found.append(Question("gcg", behavior.behavior_id, index, behavior.goal, prompt, calls, row["error"]))
    return found


def finish_embedding(asking: Asking, model: Model, suite: str, wanted: Sequence[Chunk[Any]], shelf: Shelf) -> None:
    """The embedding attack's answers, which came with the search, to the judges."""
    answered: list[tuple[Question, Answer]] = []
    for chunk in wanted:
        [(_, behavior)] = chunk.items
        [row] = shelf.of(chunk)
        question = Question("embedding", behavior.behavior_id, 0, behavior.goal, behavior.goal, row["model_calls"] or 0)
        answered.append((question, Answer(row["completion"], row["seconds"] or 0.0, row["error"])))
    replies = {question.behavior_id: reply for question, reply in answered}
    cut_chunks = cut(asking.recipe, suite, model, [question for question, _ in answered], f"{model.name}-embedding")
    todo = asking.attempts.missing(cut_chunks)
    asking.counter.add(len(answered) - sum(len(chunk.items) for chunk in todo), f"{model.name}, embedding")
    for chunk in todo:
        rows = [
            attempt_row(model, identifier, question, replies[question.behavior_id])
            for identifier, question in zip(chunk.ids, chunk.items, strict=True)
        ]
        asking.finish(model, chunk, rows)


def back_translate(
    attacker: Attacker,
    languages: Sequence[str],
    model: Model,
    scope: Scope,
    chunk: Chunk[Question],
    rows: Sequence[dict[str, Any]],
) -> dict[int, Any]:
    """What the judges read of translated attempts: the answer in English, or why it could not be had."""
    from dat_ray.evaluation.answers import Failure
    from dat_ray.evaluation.attacks.rewriting import back_translation

    numbers = [number for number, row in enumerate(rows) if (row["completion"] or "").strip()]
    requests = []
    for number in numbers:
        question, completion = chunk.items[number], rows[number]["completion"]
        asked = back_translation(completion, languages[question.attempt_index])
        seed = scope.seed_of(f"back/{model.name}", question.behavior_id, question.attempt_index)
        requests.append(Rewriting(question, asked, seed, temperature=0.0))
    stem = chunk.name.removeprefix("part-").removesuffix(".parquet") + "-back"
    written = attacker.write(stem, requests) if requests else []
    return {
        number: row["text"] if row["error"] is None else Failure(row["error"])
        for number, row in zip(numbers, written, strict=True)
    }
