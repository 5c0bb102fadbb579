"""The pools' actors: thin shells that build an engine once and hand it rows."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from dat_ray import telemetry
from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.data.schemas import CANDIDATES, HARMLESS
from dat_ray.diagnosis import answer_for_stacks, death_in_a_line
from dat_ray.engines.base import (
    DiffusionSampler,
    InfillRequest,
    InfillResult,
    Judge,
    LikelihoodSampler,
    PromptLikelihood,
    TargetModel,
    TextEncoder,
)
from dat_ray.engines.roles import Engines
from dat_ray.engines.similarity import Vectors, encode_each, nearest, similarities
from dat_ray.errors import DatError, EngineLost, HelperLost, error_line
from dat_ray.generation.capacity import generation_pools
from dat_ray.generation.goals import NO_GOALS, Goals
from dat_ray.generation.row_work import fill_in

# Columns of the encoder: with a prompt's own goal, with the nearest training goal, with the nearest harmless request.
SIMILARITIES = ("goal_similarity", "training_goal_similarity", "harmless_similarity")


class RemoteLedger:
    """The ledger's methods, answered by the actor that holds it.

    Each raises, beside what the ledger itself raises, HelperLost where the actor is gone or out of reach.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def starting(self, role: str, actors: int) -> None:
        self._ask("starting", role, actors)

    def started(self, role: str) -> None:
        self._ask("started", role)

    def open_tries(self, role: str, ids: list[str]) -> list[int]:
        open_tries: list[int] = self._ask("open_tries", role, ids)
        return open_tries

    def begin(self, role: str, ids: list[str]) -> None:
        self._ask("begin", role, ids)

    def end(self, role: str, ids: list[str], errors: dict[str, str], again: bool = False) -> None:
        self._ask("end", role, ids, errors, again)

    def dying(self, role: str, reason: str) -> None:
        self._ask("dying", role, reason)

    def death(self, role: str) -> str:
        return str(self._ask("death", role))

    def stop(self, reason: DatError) -> None:
        self._ask("stop", reason)

    def reason(self) -> DatError | None:
        reason: DatError | None = self._ask("reason")
        return reason

    def note(self) -> str:
        return str(self._ask("note"))

    def close(self) -> None:
        """Ends the actor: a plan that is over still holds it until Python collects, and its node would not go away."""
        ray.kill(self.actor)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self.actor, method).remote(*arguments))
        except RayTaskError:  # what the ledger raised, as it raised it
            raise
        except RayError as error:
            raise HelperLost(
                "generate stopped: its record of failed rows, a process on the driver's node, ended or cannot be reached "
                f"({death_in_a_line(error)}); --resume keeps what is done"
            ) from error


class RoleActor(ABC):
    """One role in one process.

    Args:
        recipe: the whole recipe; each role reads its own section.
        engines: how engines are made.
        ledger: the stage's ledger.
        adapter: LoRA adapter folder of the target, or None.
        goals: that every prompt is compared with, by the encoder.
    """

    role: str

    def __init__(
        self, recipe: Recipe, engines: Engines, ledger: RemoteLedger, adapter: str | None, goals: Goals = NO_GOALS
    ) -> None:
        self.recipe, self.engines, self.ledger, self.adapter, self.goals = recipe, engines, ledger, adapter, goals
        self.engine: Any = None
        answer_for_stacks()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Fills in this role's columns of a CANDIDATES batch."""
        if self.engine is None:
            self.engine = self._start()
        began = time.perf_counter()
        try:
            rows = fill_in(batch.to_pylist(), self.work, self.ledger, self.role)
        except EngineLost as error:
            # Ray starts a fresh process and hands it the batch again; an exception would end the whole stage.
            self.ledger.dying(self.role, str(error))
            os._exit(1)
        self._count(rows, batch["error"].null_count, time.perf_counter() - began)
        return pa.Table.from_pylist(rows, schema=CANDIDATES)

    def spent(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Model calls and tokens written for rows that this role has done; tokens counted elsewhere are 0 here."""
        return len(rows), 0

    def _count(self, rows: Sequence[Row], asked: int, seconds: float) -> None:
        done = [row for row in rows if row["error"] is None]
        calls, tokens = self.spent(done)
        telemetry.role_batch(
            "generate", self.role, rows=asked, errors=asked - len(done), calls=calls, tokens=tokens, seconds=seconds
        )

    @abstractmethod
    def build(self) -> Any:
        """Makes the engine."""

    @abstractmethod
    def work(self, rows: Sequence[Row]) -> list[Row]:
        """The columns that this role fills in, for each row in order."""

    def _start(self) -> Any:
        self.ledger.starting(self.role, generation_pools(self.recipe)[self.role].max_actors)
        try:
            with self._deadline(self.recipe.timeouts.engine_start):
                engine = self.build()
            self.ledger.started(self.role)
            telemetry.count("dat_engine_starts", 1, stage="generate", role=self.role)
            return engine
        except Exception as error:
            reason = error_line(error, limit=1000)
            self.ledger.stop(error if isinstance(error, DatError) else DatError(f"the {self.role} did not start: {reason}"))
            raise

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        builder = threading.get_ident()

        def give_up() -> None:
            stack = traceback.extract_stack(sys._current_frames()[builder])
            where = f"{stack[-1].name} ({os.path.basename(stack[-1].filename)}:{stack[-1].lineno})"
            late = DatError(f"the {self.role} did not start within timeouts.engine_start = {seconds:g} s; it was in {where}")
            try:
                self.ledger.stop(late)
            finally:
                # A thread cannot interrupt native code. The next process finds the stage stopped.
                os._exit(1)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class SamplerActor(RoleActor):
    """Draws the prompt: `prompt`, `nfe`, `sample_logprob`, `sampler`; and its likelihood, where it is asked for."""

    role = "sampler"

    def spent(self, rows: Sequence[Row]) -> tuple[int, int]:
        return sum(row["nfe"] for row in rows), sum(row["prompt_tokens"] for row in rows)

    def build(self) -> DiffusionSampler:
        return self.engines.sampler(self.recipe.sampler, self.recipe.cluster.sampler.threads)

    def work(self, rows: Sequence[Row]) -> list[Row]:
        results = self.engine.infill(
            [InfillRequest(row["candidate_id"], row["target"], row["prompt_tokens"], row["seed"]) for row in rows]
        )
        if [result.row_id for result in results] != [row["candidate_id"] for row in rows]:
            raise RuntimeError("the sampler's answers are not in the order of the rows")
        # Told by the engine, which knows what it has loaded.
        sampler = self.engine.fingerprint
        columns: list[Row] = [
            {"prompt": r.prompt, "nfe": r.nfe, "sample_logprob": r.logprob, "sampler": sampler} for r in results
        ]
        if self.recipe.sampler.likelihood_samples:
            for column, likelihood in zip(columns, self._likelihoods(rows, results), strict=True):
                column.update(likelihood)
        return columns

    def _likelihoods(self, rows: Sequence[Row], results: Sequence[InfillResult]) -> list[Row]:
        """`log_likelihood` with its error, and `other_log_likelihood` where the row names another target."""
        samples, engine = self.recipe.sampler.likelihood_samples, cast(LikelihoodSampler, self.engine)

        def bound(column: str, chosen: Sequence[int]) -> list[PromptLikelihood]:
            return engine.log_likelihood(
                [rows[i][column] for i in chosen],
                [results[i].token_ids for i in chosen],
                [rows[i]["seed"] for i in chosen],
                samples,
            )

        own = bound("target", range(len(rows)))
        found: list[Row] = [{"log_likelihood": one.value, "log_likelihood_error": one.error} for one in own]
        compared = [i for i, row in enumerate(rows) if row["other_target"] is not None]
        for i, other in zip(compared, bound("other_target", compared), strict=True):
            found[i]["other_log_likelihood"] = other.value
        return found


class TargetActor(RoleActor):
    """Lets the target answer: `completion`, `target_model`, `adapter`, and `target_logprob` = mean log p(y | x)."""

    role = "target"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._neutral_logprobs: dict[str, float] = {}

    def build(self) -> TargetModel:
        return self.engines.target(self.recipe.target, self.recipe.cluster.target.threads, self.adapter)

    def work(self, rows: Sequence[Row]) -> list[Row]:
        prompts = [row["prompt"] for row in rows]
        completions = self.engine.complete(prompts, self.recipe.target.max_new_tokens)
        telemetry.count("dat_tokens", sum(completion.tokens for completion in completions), stage="generate", role=self.role)
        # A sampler may write nothing, which selection counts as empty: there is no condition to score such a row under.
        scored = [i for i, prompt in enumerate(prompts) if prompt.strip() and completions[i].error is None]
        logprobs = dict(zip(scored, self._logprob([(prompts[i], rows[i]["target"]) for i in scored]), strict=True))
        neutral = self._neutral([rows[i]["target"] for i in scored])
        return [
            {"error": f"{self.role}: {completion.error}"}
            if completion.error is not None
            else {
                "completion": completion.text,
                "target_model": self.engine.name,
                "adapter": self.adapter,
                "target_logprob": logprobs.get(i),
                "neutral_target_logprob": neutral.get(rows[i]["target"]),
            }
            for i, completion in enumerate(completions)
        ]

    def _neutral(self, targets: Sequence[str]) -> dict[str, float]:
        """log p of responses under the neutral prompt, each asked once in the life of this process; nothing without one."""
        prompt = self.recipe.generation.neutral_prompt
        if prompt is None:
            return {}
        new = [target for target in dict.fromkeys(targets) if target not in self._neutral_logprobs]
        self._neutral_logprobs.update(zip(new, self._logprob([(prompt, target) for target in new]), strict=True))
        return self._neutral_logprobs

    def _logprob(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        values = self.engine.logprob([prompt for prompt, _ in pairs], [target for _, target in pairs]) if pairs else []
        bad = [value for value in values if not math.isfinite(value)]
        if bad:
            raise RuntimeError(f"log p(y|x) = {bad[0]}")
        return list(values)


class EncoderActor(RoleActor):
    """Compares each prompt with its goal: `goal_similarity`, the cosine of their vectors; null for an empty prompt.

    And with every training goal and every harmless request: `training_goal_similarity` and `harmless_similarity`, the largest.
    """

    role = "encoder"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._vectors: dict[tuple[str, ...], Vectors] = {}

    def build(self) -> TextEncoder:
        assert self.recipe.encoder is not None, "the plan has this role only where the recipe has an encoder"
        return self.engines.encoder(self.recipe.encoder, self.recipe.cluster.encoder.threads)

    def work(self, rows: Sequence[Row]) -> list[Row]:
        written = [i for i, row in enumerate(rows) if row["prompt"].strip()]
        found: list[Row] = [dict.fromkeys(SIMILARITIES) for _ in rows]
        if not written:
            return found
        prompts = encode_each(self.engine, [rows[i]["prompt"] for i in written])
        goals = encode_each(self.engine, [rows[i]["goal"] for i in written])
        training, harmless = (self._nearest(kind, prompts) for kind in (self.goals.training, self.goals.harmless))
        for i, *values in zip(written, similarities(prompts, goals), training, harmless, strict=True):
            found[i].update(zip(SIMILARITIES, values, strict=True))
        return found

    def _nearest(self, goals: tuple[str, ...], prompts: Vectors) -> Sequence[float | None]:
        """The largest cosine of each prompt with some goals, which are encoded once in the life of this process."""
        if not goals:
            return [None] * len(prompts)
        if goals not in self._vectors:
            self._vectors[goals] = self.engine.encode(goals)
        return nearest(prompts, self._vectors[goals])


class JudgeActor(RoleActor):
    """Judges the answer: `judge`, `verdict`, `score`; a row whose judge could not be asked has failed."""

    role = "judge"

    def build(self) -> Judge:
        return self.engines.judge(self.recipe.judge)

    def work(self, rows: Sequence[Row]) -> list[Row]:
        # Nobody asks whether the answer to a harmless request does harm: it is retained or not by rules of refusal.
        asked = [row for row in rows if row["split"] != HARMLESS]
        if not asked:
            return [{} for _ in rows]
        judgments = self.engine.judge(
            [row["goal"] for row in asked], [row["prompt"] for row in asked], [row["completion"] for row in asked]
        )
        given = [judgment.verdict for judgment in judgments if judgment.error is None]
        telemetry.verdicts("generate", self.engine.name, given)
        columns = iter([judgment.columns(self.engine.name) for judgment in judgments])
        return [{} if row["split"] == HARMLESS else next(columns) for row in rows]
