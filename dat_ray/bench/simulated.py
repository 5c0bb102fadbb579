"""Engines that answer after stated times instead of computing, and note in a file when each of them was busy.

They hold no model and import neither torch nor vLLM, so that tens of them fit on one machine.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray

from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.engines.base import Completion, InfillRequest, InfillResult, Judgment
from dat_ray.engines.roles import Engines

# How often a sampler that waits for its peers looks for them.
LOOK_SECONDS = 0.5
# One made-up word: prompts and completions are as long as those of a model at four characters a token.
WORD = "text "


@dataclass(frozen=True)
class StatedTime:
    """How long one role's batches take.

    Args:
        seconds: mean of a row, stragglers left out.
        spread: standard deviation of the logarithm of a batch's seconds, which are lognormal.
        stragglers: share of the batches that take `straggler_factor` times as long.
        straggler_factor: see `stragglers`.
        measured: seconds of a row that were measured, of which each batch draws one; empty: `seconds` and `spread` count.
    """

    seconds: float
    spread: float = 0.0
    stragglers: float = 0.0
    straggler_factor: float = 1.0
    measured: tuple[float, ...] = ()

    def draw(self, keys: Sequence[str]) -> float:
        """Seconds of one batch, a function of its rows' keys alone."""
        draws = random.Random(seed_from_id(row_id(*keys)))
        z, late = draws.gauss(0.0, 1.0), draws.random() < self.stragglers
        a_row = draws.choice(self.measured) if self.measured else self.seconds * math.exp(self.spread * z - self.spread**2 / 2)
        return len(keys) * a_row * (self.straggler_factor if late else 1.0)


@dataclass(frozen=True)
class Simulation:
    """What every engine of one run is told.

    Args:
        notes: folder, on a disk that all processes share, for the busy intervals.
        times: role -> its stated time.
        together: samplers that have to be up before the first of them works, as on a cluster that stands.
    """

    notes: str
    times: dict[str, StatedTime]
    together: int = 1


class BusyLog:
    """One process's busy intervals, a line of JSON each, in a file of its own that tells role and node.

    A batch that its process does not survive leaves nothing: it is made again.
    """

    def __init__(self, role: str, simulation: Simulation) -> None:
        node = ray.get_runtime_context().get_node_id()
        self._path = Path(simulation.notes) / f"{role}-{node}-{os.getpid()}.jsonl"
        self._time = simulation.times[role]
        self._path.touch()

    def work(self, keys: Sequence[str]) -> None:
        """Is busy for as long as a batch of these rows takes."""
        began = time.time()
        time.sleep(self._time.draw(keys))
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"start": began, "end": time.time(), "rows": len(keys)}) + "\n")


class SimulatedSampler:
    """Writes a prompt of the asked length that begins with its row's id."""

    fingerprint = "simulated"

    def __init__(self, simulation: Simulation) -> None:
        self._log, self._simulation, self._released = BusyLog("sampler", simulation), simulation, False

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """Answers after the stated time; the first call after all samplers are up."""
        self._await_peers()
        self._log.work([request.row_id for request in requests])
        return [
            InfillResult(r.row_id, _text(r.row_id, r.prompt_tokens), tuple(range(r.prompt_tokens)), -2.0 * r.prompt_tokens, 64)
            for r in requests
        ]

    def _await_peers(self) -> None:
        notes = Path(self._simulation.notes)
        while not self._released:
            if len(list(notes.glob("sampler-*.jsonl"))) >= self._simulation.together:
                # A process that takes a lost one's place finds this and does not wait.
                (notes / "released").touch()
            self._released = (notes / "released").exists()
            if not self._released:
                time.sleep(LOOK_SECONDS)


class SimulatedTarget:
    """Answers at length; the stated time is that of an answer with its log-probability."""

    name = "simulated-target"

    def __init__(self, simulation: Simulation) -> None:
        self._log = BusyLog("target", simulation)

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        """Answers after the stated time."""
        self._log.work(prompts)
        return [Completion(_text(prompt.split()[0], max_new_tokens), max_new_tokens, True) for prompt in prompts]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Answers at once."""
        return [-1.0] * len(prompts)


class SimulatedJudge:
    """Judges by a hash of the completion."""

    name, fingerprint, is_proxy = "simulated-judge", "0", True
    deviations: Sequence[str] = ()

    def __init__(self, simulation: Simulation) -> None:
        self._log = BusyLog("judge", simulation)

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        """Answers after the stated time."""
        self._log.work(prompts)
        scores = [seed_from_id(row_id(text)) / 2**63 for text in completions]
        return [Judgment("harmful" if score > 0.5 else "not_harmful", score) for score in scores]


def _text(key: str, tokens: int) -> str:
    return f"{key} {WORD * max(0, (4 * tokens - len(key)) // len(WORD))}".strip()


def _sampler(simulation: Simulation, config: SamplerConfig, threads: int) -> SimulatedSampler:
    return SimulatedSampler(simulation)


def _target(simulation: Simulation, config: TargetConfig, threads: int, adapter: str | None) -> SimulatedTarget:
    return SimulatedTarget(simulation)


def _judge(simulation: Simulation, config: JudgeConfig) -> SimulatedJudge:
    return SimulatedJudge(simulation)


def simulated_engines(simulation: Simulation) -> Engines:
    """The engines of one run, for `dat_ray.generation.stage.generate`."""
    return Engines(partial(_sampler, simulation), partial(_target, simulation), partial(_judge, simulation))
