"""What an engine does with a chunk of rows. Plain functions of an engine: an actor calls them, a test can too.

A row that fails alone is an answer with an error, never a missing row: when a batch fails, its rows are
asked one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dat_ray import telemetry
from dat_ray.engines.base import (
    Completion,
    DiffusionSampler,
    InfillRequest,
    InfillResult,
    Judge,
    Judgement,
    TargetModel,
)
from dat_ray.errors import DatError, EngineLost, ends_engine, error_line

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """A completion, or why there is none.

    Attributes:
        text: the completion; None where it failed.
        seconds: wall-clock of its batch, divided by the batch's rows.
        error: one line.
    """

    text: str | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why one row has no result, in one line."""

    error: str


def isolated(
    call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], batch_size: int
) -> list[Result | Failure]:
    """Calls in batches; rows of a batch that raises are called one by one, so that only the bad one is lost.

    Raises:
        EngineLost: the engine is of no more use in its process.
        DatError: it gave back another number of results than it was asked for.
    """
    found: list[Result | Failure] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        try:
            results: Sequence[Result | Failure] = call(batch)
        except Exception as error:
            # An engine is other people's code: whatever it raises is this batch's result, unless the engine is gone.
            if ends_engine(error):
                raise EngineLost(f"the engine cannot go on ({error_line(error)})") from error
            results = [Failure(error_line(error))] if len(batch) == 1 else isolated(call, batch, 1)
        if len(results) != len(batch):
            raise DatError(f"an engine answered {len(results)} of {len(batch)} rows")
        found.extend(results)
    return found


def sample(engine: DiffusionSampler, requests: Sequence[InfillRequest], batch_size: int) -> list[InfillResult | Failure]:
    """In-paints the prompts of a chunk."""
    began = time.perf_counter()
    found = isolated(engine.infill, requests, batch_size)
    drawn = [result for result in found if isinstance(result, InfillResult)]
    _count("sampler", found, began, sum(r.nfe for r in drawn), sum(len(r.token_ids) for r in drawn))
    return found


def _count(role: str, found: Sequence[object], began: float, calls: int, tokens: int = 0) -> None:
    errors = sum(isinstance(result, Failure) for result in found)
    seconds = time.perf_counter() - began
    telemetry.role_batch("evaluate", role, rows=len(found), errors=errors, calls=calls, tokens=tokens, seconds=seconds)


def complete(
    engine: TargetModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    prefills: Sequence[str] | None = None,
    role: str = "target",
) -> list[Answer]:
    """Answers to a chunk of prompts; see `TargetModel.complete` for the arguments. `role` is whose work it counts as."""

    def timed(batch: Sequence[tuple[str, int, str]]) -> list[tuple[Completion, float]]:
        asked, row_seeds, begun = zip(*batch, strict=True)
        options: dict[str, Any] = {"temperature": temperature, "seeds": row_seeds} if temperature else {}
        if prefills:
            options["prefills"] = begun
        started = time.perf_counter()
        completions = engine.complete(asked, max_new_tokens, **options)
        seconds = (time.perf_counter() - started) / len(batch)
        return [(completion, seconds) for completion in completions]

    rows = list(zip(prompts, seeds or [0] * len(prompts), prefills or [""] * len(prompts), strict=True))
    began = time.perf_counter()
    replies = isolated(timed, rows, batch_size)
    tokens = sum(reply[0].tokens for reply in replies if not isinstance(reply, Failure))
    _count(role, replies, began, len(replies), tokens)
    return [_answer(reply) for reply in replies]


def _answer(found: tuple[Completion, float] | Failure) -> Answer:
    if isinstance(found, Failure):
        return Answer(None, 0.0, found.error)
    completion, seconds = found
    return Answer(None, seconds, completion.error) if completion.error else Answer(completion.text, seconds)


def logprob(engine: TargetModel, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float | Failure]:
    """Mean log p(response | prompt) of each (prompt, response), in nats a token."""

    def score(batch: Sequence[tuple[str, str]]) -> list[float]:
        return engine.logprob([prompt for prompt, _ in batch], [response for _, response in batch])

    return isolated(score, pairs, batch_size)


def judge(engine: Judge, triples: Sequence[tuple[str, str, str]], batch_size: int) -> list[Judgement | Failure]:
    """Verdicts on (goal, prompt, completion)."""

    def verdicts(batch: Sequence[tuple[str, str, str]]) -> list[Judgement]:
        goals, prompts, completions = zip(*batch, strict=True)
        return engine.judge(goals, prompts, completions)

    began = time.perf_counter()
    found = isolated(verdicts, triples, batch_size)
    _count("judge", found, began, len(found))
    given = [item.verdict for item in found if isinstance(item, Judgement) and item.error is None]
    telemetry.verdicts("evaluate", engine.name, given)
    return found
