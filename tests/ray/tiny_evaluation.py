"""Engines that answer at once and note what they were asked, so that evaluation can be tested on a real Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from dat_ray.config.models import TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.shards import exists, write_file
from dat_ray.engines.base import Completion, InfillRequest, InfillResult, Judgment, TargetModel
from dat_ray.engines.endpoint import EndpointModel
from dat_ray.engines.roles import Engines
from tests.ray.tiny_generation import await_release

# Worker processes cannot import a module of the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

HELD_OUT, LOOK_ALIKES, SAMPLES = 6, 4, 5
ROWS_PER_BLOCK = 8


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and where it is noted.

    Args:
        notes: folder; every prompt that is drawn or answered leaves a line.
        no_prompt_for: target text for which the sampler raises.
        no_answer_to: prompt on which the target raises.
        adapted_exits: whether the fine-tuned model's process ends at its first question.
        no_start: whether the target cannot be built.
        judge_exits: whether the judge's process ends at its first question.
        hold_after: answers of the targets after which they give no more until `tiny_generation.release(notes)`; None for no
            hold.
    """

    notes: str
    no_prompt_for: str = ""
    no_answer_to: str = ""
    adapted_exits: bool = False
    no_start: bool = False
    judge_exits: bool = False
    hold_after: int | None = None

    def note(self, kind: str, lines: Sequence[str]) -> None:
        with open(Path(self.notes) / f"{kind}-{os.getpid()}", "a") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def noted(self, kind: str) -> list[str]:
        return [line for path in Path(self.notes).glob(f"{kind}-*") for line in path.read_text().splitlines()]


class TinySampler:
    fingerprint = "tiny"

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        if self.faults.no_prompt_for in [request.target for request in requests]:
            raise ValueError("cannot in-paint")
        self.faults.note("drawn", [request.row_id for request in requests])
        return [
            InfillResult(r.row_id, f"tell {r.seed % 5} {r.target}", (1,) * r.prompt_tokens, -1.0, r.prompt_tokens)
            for r in requests
        ]


class TinyTarget:
    """Complies, except that the fine-tuned one refuses every second goal, harmless ones too."""

    name = "tiny-target"

    def __init__(self, faults: Faults, adapter: str | None) -> None:
        self.faults, self.adapter = faults, adapter

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        if self.adapter and self.faults.adapted_exits:
            os._exit(1)
        if self.faults.no_answer_to in prompts:
            raise ValueError("prompt too long")
        if self.faults.hold_after is not None and len(self.faults.noted("base")) >= self.faults.hold_after:
            await_release(Path(self.faults.notes))
        self.faults.note("adapted" if self.adapter else "base", prompts)
        return [Completion(self._answer(prompt), 2, True) for prompt in prompts]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [-3.0 if self.adapter else -1.0 for _ in prompts]

    def _answer(self, prompt: str) -> str:
        even = int("".join(filter(str.isdigit, prompt))[-1]) % 2 == 0
        return "no" if self.adapter and even else "sure"


class TinyJudge:
    name, fingerprint, is_proxy = "tiny-judge", "0", True
    deviations: Sequence[str] = ()

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        if self.faults.judge_exits:
            os._exit(1)
        return [Judgment("harmful", 0.9) if completion == "sure" else Judgment("not_harmful", 0.0) for completion in completions]


class StrictJudge(TinyJudge):
    """Calls nothing harmful, and notes what it read."""

    name, fingerprint, is_proxy = "strict-judge", "1", False
    deviations: Sequence[str] = ("is stricter than the published one",)

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        self.faults.note("judged", completions)
        return [Judgment("not_harmful", 0.0) for _ in completions]


def _sampler(faults: Faults, cfg: object, threads: int) -> TinySampler:
    return TinySampler(faults)


def _target(faults: Faults, cfg: TargetConfig, threads: int, adapter: str | None) -> TargetModel:
    if faults.no_start:
        raise OSError("weights not found")
    if getattr(cfg, "backend", None) == "endpoint":
        return EndpointModel(cfg)
    faults.note("built", [cfg.model + (" adapted" if adapter else "")])
    return TinyTarget(faults, adapter)


def _judge(faults: Faults, cfg: object) -> TinyJudge:
    return TinyJudge(faults)


def _strict_judge(faults: Faults, cfg: object) -> StrictJudge:
    return StrictJudge(faults)


def strict_engines(faults: Faults) -> Engines:
    return Engines(partial(_sampler, faults), partial(_target, faults), partial(_strict_judge, faults))


def engines(faults: Faults) -> Engines:
    return Engines(partial(_sampler, faults), partial(_target, faults), partial(_judge, faults))


def tiny_recipe(**sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "behaviors": {"path": "tiny", "heldout": {"path": "tiny"}},
        "sampler": {"model": "none", "prompt_tokens": [4, 8, 12], "steps": 4, "batch_size": 4},
        "target": {"model": "none", "batch_size": 4},
        "generation": {"rows_per_block": ROWS_PER_BLOCK, "max_error_rate": 0.2},
        "evaluation": {"inpainting_samples": SAMPLES, "bootstrap": 200},
        "training": {"retain": {"path": "none"}},
        "cluster": {role: {"num_cpus": 0.5} for role in ("sampler", "target", "judge")},
        "timeouts": {"no_progress": 600, "engine_start": 600},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section}
    return Recipe.model_validate(tree)


def tiny_run(root: Path | str, recipe: Recipe, adapter: bytes = b"weights") -> RunDir:
    """A run directory with held-out goals `goal 0` to `goal 5`, harmless ones, and an adapter's files."""
    run = open_run(str(root), recipe, resume=True)
    if not exists(run.behaviors):
        rows = [_behavior(f"h{i}", f"goal {i}", "heldout", f"Sure {i}") for i in range(HELD_OUT)]
        rows += [_behavior(f"o{i}", f"harmless {i}", "over_refusal", "") for i in range(LOOK_ALIKES)]
        write_file(run.behaviors, pa.Table.from_pylist(rows, schema=BEHAVIORS))
    folder = Path(run.adapter(0))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(adapter)
    return run


def _behavior(identifier: str, goal: str, split: str, target: str) -> dict[str, Any]:
    return {
        "behavior_id": identifier,
        "goal": goal,
        "category": None,
        "source": "tiny",
        "split": split,
        "target_index": 0,
        "target": target,
        "refusal": "I cannot." if target else "",
    }
