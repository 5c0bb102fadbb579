"""Calls of an engine with many rows. Plain functions of an engine: an actor calls them, a test can too.

A row that fails alone is an answer with an error, never a missing row: when a batch fails, its rows are asked one by one.
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
    Judgment,
    TargetModel,
    TextEncoder,
)
from dat_ray.engines.pieces import by_rows
from dat_ray.engines.similarity import Vectors, encode_each, similarities
from dat_ray.errors import DatError, EngineLost, blamed_on, ends_engine, error_line

Item = TypeVar("Item")
Result = TypeVar("Result")
# Stage that the calls of this module count for; generation counts rows by its own actors.
_STAGE = "evaluate"


@dataclass(frozen=True)
class Failure:
    """Why one row has no result, in one line."""

    error: str


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
class CompletionCall:
    """Prompts for a chat model, see `TargetModel.complete`.

    Attributes:
        prompts: one a row.
        max_new_tokens: of one answer.
        batch_size: rows of one batch.
        temperature: 0 for greedy decoding.
        seeds: one a row; read above temperature 0.
        prefills: one a row; None where no answer is begun.
        histories: one a row: earlier turns, see `TargetModel.complete`; None where no conversation has any.
        role: whose work it counts as.
    """

    prompts: Sequence[str]
    max_new_tokens: int
    batch_size: int
    temperature: float = 0.0
    seeds: Sequence[int] | None = None
    prefills: Sequence[str] | None = None
    histories: Sequence[Sequence[str]] | None = None
    role: str = "target"


@dataclass(frozen=True)
class LikelihoodCall:
    """(Prompt, response) pairs whose likelihood is asked for, in batches of so many rows."""

    pairs: Sequence[tuple[str, str]]
    batch_size: int


@dataclass(frozen=True)
class InfillCall:
    """Prompts to in-paint, in batches of so many rows."""

    requests: Sequence[InfillRequest]
    batch_size: int


@dataclass(frozen=True)
class SimilarityCall:
    """Pairs of texts to compare by a sentence encoder, in batches of so many rows."""

    pairs: Sequence[tuple[str, str]]
    batch_size: int


@dataclass(frozen=True)
class EncodeCall:
    """Texts whose unit vectors are asked for, in batches of so many."""

    texts: Sequence[str]
    batch_size: int


@dataclass(frozen=True)
class Completed:
    """What a judge reads: the goal, the prompt that was asked, and the completion."""

    goal: str
    prompt: str
    completion: str


@dataclass(frozen=True)
class JudgeCall:
    """Completions to judge, in batches of so many rows."""

    rows: Sequence[Completed]
    batch_size: int


class WrongCount(RuntimeError):
    """An engine gave another number of results than it was asked for."""


def try_call(call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> Sequence[Result] | Exception:
    """Calls an engine once; whatever it raises is returned, for the caller to decide whose failure it is.

    Raises:
        EngineLost: the engine is of no more use in its process.
    """
    try:
        results = call(items)
    except Exception as error:
        # An engine is other people's code: whatever it raises is this batch's result, unless the engine is gone.
        if ends_engine(error):
            raise EngineLost(f"the engine cannot go on ({error_line(error)})") from error
        return error
    if len(results) != len(items):
        return WrongCount(f"{len(results)} answers to {len(items)} rows")
    return results


def call_isolated(
    call: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], batch_size: int
) -> list[Result | Failure]:
    """Calls an engine in batches; rows of a batch that raises are called one by one, so that a failing row fails alone.

    Raises:
        EngineLost: the engine is of no more use in its process.
        DatError: it gave back another number of results than it was asked for.
    """
    found: list[Result | Failure] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        results = try_call(call, batch)
        if isinstance(results, WrongCount):
            raise DatError(f"an engine gave {results}")
        if not isinstance(results, Exception):
            found.extend(results)
        elif len(batch) == 1:
            found.append(Failure(error_line(results)))
        else:
            found.extend(call_isolated(call, batch, 1))
    return found


@by_rows("requests", failed=Failure)
def infill(engine: DiffusionSampler, asked: InfillCall) -> list[InfillResult | Failure]:
    """In-paints prompts."""
    began = time.perf_counter()
    found = call_isolated(engine.infill, asked.requests, asked.batch_size)
    drawn = [result for result in found if isinstance(result, InfillResult)]
    _count("sampler", found, began, sum(r.nfe for r in drawn), sum(len(r.token_ids) for r in drawn))
    return found


def _count(role: str, found: Sequence[object], began: float, calls: int, tokens: int = 0) -> None:
    errors = sum(isinstance(result, Failure) for result in found)
    seconds = time.perf_counter() - began
    telemetry.role_batch(_STAGE, role, rows=len(found), errors=errors, calls=calls, tokens=tokens, seconds=seconds)


@by_rows("prompts", "seeds", "prefills", "histories", failed=lambda reason: Answer(None, 0.0, reason))
def complete(engine: TargetModel, asked: CompletionCall) -> list[Answer]:
    """Lets a model answer prompts."""

    def timed(batch: Sequence[tuple[str, int, str, Sequence[str]]]) -> list[tuple[Completion, float]]:
        prompts, row_seeds, begun, histories = zip(*batch, strict=True)
        options: dict[str, Any] = {"temperature": asked.temperature, "seeds": row_seeds} if asked.temperature else {}
        if asked.prefills:
            options["prefills"] = begun
        if asked.histories:
            options["histories"] = histories
        started = time.perf_counter()
        with blamed_on("target" if asked.role == "target" else f"evaluation.{asked.role}"):
            completions = engine.complete(prompts, asked.max_new_tokens, **options)
        seconds = (time.perf_counter() - started) / len(batch)
        return [(completion, seconds) for completion in completions]

    count = len(asked.prompts)
    begun, histories = asked.prefills or [""] * count, asked.histories or [()] * count
    rows = list(zip(asked.prompts, asked.seeds or [0] * count, begun, histories, strict=True))
    began = time.perf_counter()
    replies = call_isolated(timed, rows, asked.batch_size)
    tokens = sum(reply[0].tokens for reply in replies if not isinstance(reply, Failure))
    _count(asked.role, replies, began, len(replies), tokens)
    return [_answer(reply) for reply in replies]


def _answer(found: tuple[Completion, float] | Failure) -> Answer:
    if isinstance(found, Failure):
        return Answer(None, 0.0, found.error)
    completion, seconds = found
    return Answer(None, seconds, completion.error) if completion.error else Answer(completion.text, seconds)


@by_rows("pairs", failed=Failure)
def logprob(engine: TargetModel, asked: LikelihoodCall) -> list[float | Failure]:
    """Mean log p(response | prompt) of each pair, in nats a token."""

    def score(batch: Sequence[tuple[str, str]]) -> list[float]:
        return engine.logprob([prompt for prompt, _ in batch], [response for _, response in batch])

    return call_isolated(score, asked.pairs, asked.batch_size)


@by_rows("pairs", failed=Failure)
def similarity(engine: TextEncoder, asked: SimilarityCall) -> list[float | Failure]:
    """The cosine of each pair of texts."""

    def compare(batch: Sequence[tuple[str, str]]) -> list[float]:
        first, second = zip(*batch, strict=True)
        return similarities(encode_each(engine, first), encode_each(engine, second))

    return call_isolated(compare, asked.pairs, asked.batch_size)


@by_rows("texts", failed=Failure)
def encode(engine: TextEncoder, asked: EncodeCall) -> list[Vectors | Failure]:
    """The unit vector (D,) of each text."""
    return call_isolated(lambda batch: list(encode_each(engine, batch)), asked.texts, asked.batch_size)


@by_rows("rows", failed=Failure)
def judge(engine: Judge, asked: JudgeCall) -> list[Judgment | Failure]:
    """Lets a judge read completions."""

    def verdicts(batch: Sequence[Completed]) -> list[Judgment]:
        return engine.judge([row.goal for row in batch], [row.prompt for row in batch], [row.completion for row in batch])

    began = time.perf_counter()
    found = call_isolated(verdicts, asked.rows, asked.batch_size)
    _count("judge", found, began, len(found))
    given = [item.verdict for item in found if isinstance(item, Judgment) and item.error is None]
    telemetry.verdicts(_STAGE, engine.name, given)
    return found
