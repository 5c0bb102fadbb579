"""Training curves on a tracking server: MLflow or Weights & Biases, each an optional package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

from dat_ray.config.cluster import TrackingConfig
from dat_ray.config.schema import Recipe
from dat_ray.errors import InputError


class Sink(Protocol):
    """Takes the numbers of each update. A replay after a crash sends the same numbers again."""

    def log(self, values: dict[str, float], update: int) -> None: ...

    def close(self) -> None: ...


class MlflowSink:
    """One MLflow run a training; a resumed one goes on in the run that carries its fingerprint as a tag."""

    def __init__(self, recipe: Recipe, mark: str) -> None:
        import mlflow

        cfg = recipe.tracking
        if cfg.mlflow_uri:
            mlflow.set_tracking_uri(cfg.mlflow_uri)
        mlflow.set_experiment(cfg.mlflow)
        known = mlflow.search_runs(filter_string=f"tags.dat_run = '{mark}'", output_format="list", max_results=1)
        self._mlflow = mlflow
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=recipe.name, tags={"dat_run": mark})
            mlflow.log_params({f"training.{name}": str(value)[:250] for name, value in recipe.training.model_dump().items()})

    def log(self, values: dict[str, float], update: int) -> None:
        self._mlflow.log_metrics(values, step=update)

    def close(self) -> None:
        self._mlflow.end_run()


class WandbSink:
    """One run of Weights & Biases a training, with the fingerprint as its id, so that a resumed one goes on there."""

    def __init__(self, recipe: Recipe, mark: str) -> None:
        import wandb

        config = recipe.model_dump(mode="json")
        self._run: Any = wandb.init(project=recipe.tracking.wandb, name=recipe.name, id=mark, resume="allow", config=config)

    def log(self, values: dict[str, float], update: int) -> None:
        self._run.log(values, step=update)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Recipe, str], Sink]] = {"mlflow": MlflowSink, "wandb": WandbSink}


def wanted_sinks(cfg: TrackingConfig) -> list[str]:
    """Names of the trackers that the recipe asks for.

    Raises:
        InputError: one whose package is not installed.
    """
    names = [name for name in SINKS if getattr(cfg, name) is not None]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"tracking.{name}", getattr(cfg, name), f"needs the package {name}: install the extra dat-ray[{name}]"
            )
    return names


def open_sinks(recipe: Recipe, mark: str) -> list[Sink]:
    """Connects to the trackers of a recipe; `mark` is the run's fingerprint."""
    return [SINKS[name](recipe, mark) for name in wanted_sinks(recipe.tracking)]
