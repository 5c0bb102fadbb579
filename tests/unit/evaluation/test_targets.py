"""Models that differ in their adapter alone are asked where the one before was, and say what they say of their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dat_ray.config.evaluation import GapConfig
from dat_ray.config.models import TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.rundir import open_run
from dat_ray.data.shards import read_table, write_file
from dat_ray.engines import roles
from dat_ray.engines.base import TargetModel
from dat_ray.engines.calls import complete
from dat_ray.engines.roles import Engines
from dat_ray.engines.switching import WithAdapter
from dat_ray.engines.torch_target import TorchTarget
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import named_models
from dat_ray.evaluation.gap_pairs import ScoredPair
from dat_ray.evaluation.gap_results import FRESH_PROMPTS
from dat_ray.evaluation.stage import evaluate
from tests.golden.in_process import in_process
from tests.golden.tiny import ADAPTER, TARGET, make_models, make_recipe

Built = list[str | None]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two adapters of one model, and a suite that asks little."""
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for path in (tmp_path / ADAPTER).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: np.ascontiguousarray(-2 * one[::-1]) for name, one in weights.items()}, other / "adapter_model.safetensors")
    whole = make_recipe(tmp_path, {"batch_size": 4, "rows_per_block": 4})
    small: dict[str, Any] = {
        "attacks": ("direct",),
        "kl_rows": 0,
        "second_judge": None,
        "refusal_judge": {"name": "refusal-rules"},
    }
    tree = whole.model_dump() | {"judge": {"name": "refusal-rules"}}
    tree["evaluation"] |= small
    return Recipe.model_validate(tree)


def counted(built: Built, config: TargetConfig, threads: int, adapter: str | None) -> TargetModel:
    built.append(None if adapter is None else Path(adapter).name)
    return roles._build_target(config, threads, adapter)


def asked(recipe: Recipe, name: str, built: Built, drawn: dict[str, list[ScoredPair]] | None = None) -> list[dict[str, Any]]:
    run = open_run(name, recipe, resume=False)
    write_file(run.behaviors, load_behaviors(recipe.behaviors).table)
    models = named_models(recipe, f"base=base,one={ADAPTER},two=other")
    with in_process(lambda body: ""):
        evaluate(recipe, run, engines=Engines(target=partial(counted, built)), models=models, drawn=drawn)
    rows = read_table(run.evaluation("default")).sort_by("attempt_id").to_pylist()
    likelihoods = read_table(f"{run.evaluation('default')}/target_logprob").sort_by("candidate_id").to_pylist()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in [*rows, *likelihoods]]


def test_adapters_that_share_a_start_answer_as_adapters_that_do_not(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    together: Built = []
    found = asked(recipe, "together", together)
    assert together == [None]
    monkeypatch.setattr(TorchTarget, "switches_adapters", False)
    apart: Built = []
    assert asked(recipe, "apart", apart) == found
    assert apart == [None, ADAPTER, "other"]
    # The three say different things, else this would show nothing.
    said = {model: [row["completion"] for row in found if row.get("model") == model] for model in ("base", "one", "two")}
    assert len({tuple(one) for one in said.values()}) == 3


def test_what_needs_the_targets_place_has_it(recipe: Recipe) -> None:
    """A search with gradients, or the distribution gap, loads a model where its engines were: these must be gone."""
    evaluation = recipe.evaluation.model_copy(update={"attacks": ("direct", "embedding")})
    searched: Built = []
    asked(recipe.model_copy(update={"evaluation": evaluation}), "searched", searched)
    assert searched == [None, ADAPTER, "other"]
    evaluation = recipe.evaluation.model_copy(update={"gap": GapConfig()})
    pair = ScoredPair(FRESH_PROMPTS, "one", "drawn", "Hello there", "Sure, here", "I cannot", False)
    scored: Built = []
    drawn = {name: [pair] for name in ("base", "one", "two")}
    asked(recipe.model_copy(update={"evaluation": evaluation}), "scored", scored, drawn)
    assert scored == [None, ADAPTER, "other"]


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_is(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = recipe.target.model_copy(update={"model": str(tmp_path / TARGET)})
    target = TorchTarget(config, str(tmp_path / TARGET), 1)
    before = target.logprob(["Hello"], ["Sure, here"])
    target.use_adapter(str(tmp_path / ADAPTER))
    assert target.logprob(["Hello"], ["Sure, here"]) != before
    with pytest.raises(InputError):
        target.use_adapter(str(tmp_path / "empty"))
    assert target.logprob(["Hello"], ["Sure, here"]) == before


class Noting:
    """An engine that notes its adapters."""

    def __init__(self) -> None:
        self.adapters: list[str | None] = []

    def use_adapter(self, adapter: str | None) -> None:
        self.adapters.append(adapter)


def test_work_with_an_adapter_is_taken_apart_as_the_work_is() -> None:
    engine, work = Noting(), WithAdapter(lambda engine, *payload: payload, "here")
    assert work(engine, 1, 2) == (1, 2)
    assert engine.adapters == ["here"]
    assert work.by_rows is None
    assert WithAdapter(complete, None).by_rows is complete.by_rows  # type: ignore[attr-defined]
