"""Engines that answer at once, and fail on demand, so that generation's faults can be tested on a real Ray cluster."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.shards import exists, read_file, write_file
from dat_ray.engines.base import Completion, InfillRequest, InfillResult, Judgment
from dat_ray.engines.roles import Engines
from dat_ray.generation.expand import expand
from dat_ray.models.identity import sampler_fingerprint, weights_of

BEHAVIOR_COUNT, SAMPLES = 6, 16
ROWS = BEHAVIOR_COUNT * SAMPLES
ROWS_PER_BLOCK = 8
# Files in the notes: an engine holds, and those that hold may go on.
HELD, RELEASED, HANGS = "held", "released", "hangs"


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and where it is noted.

    Args:
        notes: folder; each prompt that is drawn leaves a line, each fault that happened once a file.
        seconds_per_row: the sampler's pace.
        hold_after: prompts after which no more are drawn until `release(notes)`; None for no hold.
        raise_on: row ids on which the sampler raises, every time.
        exit_on: row ids on which the sampler's process ends, every time.
        exit_once: whether the sampler's process ends once, after its first batch.
        dead_engine_once: whether the sampler once raises what vLLM raises when its engine loop is gone.
        no_start: whether the target cannot be built.
        hang: whether the sampler never answers; it notes that it began to.
        start_hangs: whether building the target never ends.
        judge_away: goals about which the judge cannot be asked.
    """

    notes: str
    seconds_per_row: float = 0.0
    hold_after: int | None = None
    raise_on: tuple[str, ...] = ()
    exit_on: tuple[str, ...] = ()
    exit_once: bool = False
    dead_engine_once: bool = False
    no_start: bool = False
    hang: bool = False
    start_hangs: bool = False
    judge_away: tuple[str, ...] = ()


class EngineDeadError(RuntimeError):
    """Named as vLLM names it."""


class TinySampler:
    fingerprint = "tiny"

    def __init__(self, faults: Faults) -> None:
        self.faults, self.calls = faults, 0

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        notes = Path(self.faults.notes)
        self.calls += 1
        if self.faults.hang:
            first_time(notes / HANGS)
            time.sleep(600)
        for request in requests:
            if request.row_id in self.faults.exit_on:
                os._exit(1)
            if request.row_id in self.faults.raise_on:
                raise ValueError(f"cannot in-paint {request.row_id}")
        if self.calls == 2 and self.faults.exit_once and first_time(notes / "exited"):
            os._exit(1)
        if self.calls == 2 and self.faults.dead_engine_once and first_time(notes / "dead"):
            raise EngineDeadError("the loop is gone")
        if self.faults.hold_after is not None and len(drawn(notes)) >= self.faults.hold_after:
            first_time(notes / HELD)
            await_release(notes)
        time.sleep(self.faults.seconds_per_row * len(requests))
        with open(notes / f"drawn-{os.getpid()}", "a") as stream:
            stream.writelines(f"{request.row_id}\n" for request in requests)
        results = []
        for request in requests:
            digest = hashlib.sha256(f"{request.seed} {request.prompt_tokens} {request.target}".encode()).hexdigest()
            prompt = f"please {digest[: request.prompt_tokens]}"
            results.append(InfillResult(request.row_id, prompt, (1,) * request.prompt_tokens, -1.5, request.prompt_tokens))
        return results


class TinyTarget:
    name = "tiny-target"

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        return [Completion(f"on {prompt}"[:max_new_tokens], 2, True) for prompt in prompts]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [-len(prompt) / 100 for prompt in prompts]


class TinyJudge:
    name, fingerprint, is_proxy = "tiny-judge", "0", True
    deviations: Sequence[str] = ()

    def __init__(self, away: Sequence[str] = ()) -> None:
        self.away = away

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        scores = [int(hashlib.sha256(text.encode()).hexdigest()[:2], 16) / 255 for text in completions]
        return [
            Judgment("unparsed", None, "status 429: slow down")
            if goal in self.away
            else Judgment("harmful" if score > 0.5 else "not_harmful", score)
            for goal, score in zip(goals, scores, strict=True)
        ]


class TinyEncoder:
    """Texts with the same digits point the same way."""

    name = "tiny-encoder"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[1 + text.count(str(digit)) for digit in range(10)] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def release(notes: Path | str) -> None:
    """Lets go of every engine that holds."""
    (Path(notes) / RELEASED).touch()


def await_release(notes: Path) -> None:
    """Holds an engine in the middle of its work until a drill has done what it does to the run."""
    while not (notes / RELEASED).exists():
        time.sleep(0.02)


def first_time(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _sampler(faults: Faults, cfg: object, threads: int) -> TinySampler:
    return TinySampler(faults)


def _target(faults: Faults, cfg: object, threads: int, adapter: str | None) -> TinyTarget:
    if faults.no_start:
        raise OSError("weights not found")
    if faults.start_hangs:
        time.sleep(600)
    return TinyTarget()


def _judge(faults: Faults, cfg: object) -> TinyJudge:
    return TinyJudge(faults.judge_away)


def _encoder(cfg: object, threads: int) -> TinyEncoder:
    return TinyEncoder()


def engines(faults: Faults) -> Engines:
    return Engines(partial(_sampler, faults), partial(_target, faults), partial(_judge, faults), _encoder)


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "behaviors": {"path": "tiny", "heldout": {"path": "tiny"}},
        "sampler": {"model": "none", "prompt_tokens": [4, 8, 12], "steps": 4, "batch_size": 4},
        "target": {"model": "none", "batch_size": 8},
        "generation": {"samples_per_target": SAMPLES, "rows_per_block": ROWS_PER_BLOCK, "max_error_rate": 0.2},
        "training": {"retain": {"path": "none"}},
        "cluster": {role: {"num_cpus": 0.5} for role in ("sampler", "target", "judge")},
        "timeouts": {"no_progress": 600, "engine_start": 600},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return Recipe.model_validate(tree)


def tiny_run(root: Path | str, recipe: Recipe, harmless: Sequence[str] = ()) -> RunDir:
    """A run directory whose behaviors are `goal 0` to `goal 5`, each with one target; and these harmless requests."""
    run = open_run(str(root), recipe, resume=True)
    if not exists(run.behaviors):
        goals = [(f"b{index}", "train", f"goal {index}") for index in range(BEHAVIOR_COUNT)]
        goals += [(f"h{index}", "harmless", goal) for index, goal in enumerate(harmless)]
        rows = [
            {
                "behavior_id": identifier,
                "goal": goal,
                "category": None,
                "source": "tiny",
                "split": split,
                "target_index": 0,
                "target": f"Sure, here is {identifier[1:]}",
                "refusal": "I cannot.",
            }
            for identifier, split, goal in goals
        ]
        write_file(run.behaviors, pa.Table.from_pylist(rows, schema=BEHAVIORS))
    return run


def request_ids(run: RunDir, recipe: Recipe) -> list[str]:
    """Ids of the rows that the run's generation makes."""
    sampler = sampler_fingerprint(recipe.sampler, weights_of(recipe.sampler.model))
    return expand(read_file(run.behaviors), recipe, sampler)["candidate_id"].to_pylist()


def drawn(notes: Path) -> list[str]:
    """Row ids of every prompt that a sampler drew, repeats included."""
    return [line for path in notes.glob("drawn-*") for line in path.read_text().split()]
