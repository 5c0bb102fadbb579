"""Trackers: what they are sent, by stand-ins for packages that are not part of the environment."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dat_ray.config.cluster import TrackingConfig
from dat_ray.config.schema import Recipe
from dat_ray.errors import InputError
from dat_ray.training.tracking import open_sinks, wanted_sinks
from dat_ray.training.update_metrics import MetricsLog


def recipe(**tracking: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none"},
            "target": {"model": "none"},
            "training": {"retain_rows": 0, "retain_weight": 0.0},
            "tracking": tracking,
        }
    )


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def update(number: int) -> dict[str, Any]:
    cost = {"tokens_per_s": 10.0, "peak_bytes": 7, "utilization": None}
    return {"update": number, "loss": 1.5, "gradient_norm": 0.5, "attack_ce": [3.0, 2.0], "attack_norm": [0.1], "cost": cost}


EXPECTED = {
    "training/loss": 1.5,
    "training/gradient_norm": 0.5,
    "cost/tokens_per_s": 10.0,
    "cost/peak_bytes": 7.0,
    "attack/harmful_ce_before": 3.0,
    "attack/harmful_ce_after": 2.0,
    "attack/relative_norm": 0.1,
}


@pytest.mark.parametrize("known", [[], [SimpleNamespace(info=SimpleNamespace(run_id="r7"))]], ids=["new", "resumed"])
def test_mlflow_gets_each_update_in_one_run(known: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def record(name: str, answer: Any = None) -> Any:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return answer

        return recorded

    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    stand_in("mlflow", monkeypatch, search_runs=record("search_runs", known), **{name: record(name) for name in names})
    cfg = recipe(mlflow="dat", mlflow_uri="file:here")
    log = MetricsLog(str(tmp_path), sinks=open_sinks(cfg, "abcd"))
    log.start(0)
    log.append(update(0))
    log.close()
    found = {name: (args, kwargs) for name, args, kwargs in calls}
    assert found["set_tracking_uri"][0] == ("file:here",)
    assert found["set_experiment"][0] == ("dat",)
    assert "abcd" in found["search_runs"][1]["filter_string"]
    assert found["start_run"][1] == ({"run_id": "r7"} if known else {"run_name": "t", "tags": {"dat_run": "abcd"}})
    assert ("log_params" in found) is not bool(known)
    assert found["log_metrics"] == ((EXPECTED,), {"step": 0})
    assert calls[-1][0] == "end_run"


def test_wandb_gets_each_update_in_the_run_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    run = SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append(("finish", None)))
    begun: list[dict] = []

    def init(**kwargs: Any) -> Any:
        begun.append(kwargs)
        return run

    stand_in("wandb", monkeypatch, init=init)
    log = MetricsLog(str(tmp_path), sinks=open_sinks(recipe(wandb="robustness"), "abcd"))
    log.start(3)
    log.append(update(3))
    log.close()
    assert calls == [(EXPECTED, 3), ("finish", None)]
    assert {key: begun[0][key] for key in ("project", "id", "resume")} == {
        "project": "robustness",
        "id": "abcd",
        "resume": "allow",
    }
    assert begun[0]["config"]["training"]["learning_rate"] == 1e-4


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(
        InputError, match=rf"tracking.{name} = 'x': needs the package {name}: install the extra dat-ray\[{name}\]"
    ):
        wanted_sinks(TrackingConfig.model_validate({name: "x"}))
    assert wanted_sinks(TrackingConfig()) == []
