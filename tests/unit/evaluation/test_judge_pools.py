from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.engines import pool_size
from dat_ray.engines.roles import Engines
from dat_ray.errors import InputError
from dat_ray.evaluation import judges, runner
from dat_ray.evaluation.judges import judge_pools, start_judges

READER = "{model: some/judge, template: none}"
CARD = ["cluster.target.num_gpus=0.5", "cluster.judge.num_gpus=0.25", "cluster.attacker.num_gpus=0.25"]


class NoWorkers:
    """Takes notes in place of a pool of actors."""

    started: ClassVar[dict[str, float]] = {}

    def __init__(self, role: str, build: Any, pool: Any, timeouts: Any) -> None:
        self.started[role] = pool.num_gpus

    def __enter__(self) -> NoWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_judges_by_rules_take_no_gpu_beside_one_that_is_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "Workers", NoWorkers)
    recipe = load_recipe("demo", ["judge.name=harmbench", f"judge.reader={READER}", *CARD])
    with ExitStack() as stack:
        start_judges(recipe, Engines(), stack)
    assert NoWorkers.started == {"judge": 0.25, "judge of refusals": 0.0}


def test_each_judge_that_is_a_model_has_a_pool_of_its_own() -> None:
    second = "{name: llama-guard, reader: " + READER + "}"
    recipe = load_recipe("demo", [f"evaluation.second_judge={second}", *CARD])
    assert {role: pool.num_gpus for role, pool in judge_pools(recipe).items()} == {"judge": 0.0, "second judge": 0.25}


@pytest.mark.parametrize(("second", "room"), [(False, True), (True, False)])
def test_room_is_counted_with_every_judge(monkeypatch: pytest.MonkeyPatch, second: bool, room: bool) -> None:
    monkeypatch.setattr(pool_size, "_totals", lambda: {"CPU": 64.0, "GPU": 1.0})
    settings = ["judge.name=harmbench", f"judge.reader={READER}", *CARD]
    settings += ["evaluation.second_judge={name: llama-guard, reader: " + READER + "}"] if second else []

    suite: Any = SimpleNamespace(recipe=load_recipe("demo", settings), attacker_works_beside_targets=True)
    if room:
        runner._check_room(suite)
    else:
        with pytest.raises(InputError, match="no room for all"):
            runner._check_room(suite)
