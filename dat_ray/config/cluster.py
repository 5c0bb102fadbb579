"""Parts of a recipe that change no result: what each role asks of the cluster, deadlines, where curves go."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dat_ray.config.section import Outside, PathText, Positive, Section


class Pool(Section):
    """One role's actor pool."""

    min_actors: Positive = Field(1, description="that it begins with, and keeps")
    max_actors: Positive = Field(1, description="to which it grows while there is work for more, and room")
    num_cpus: Annotated[float, Field(gt=0.0)] = Field(1.0, description="logical CPUs of an actor")
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = Field(1, description="OpenMP threads of an actor on a CPU")
    subcluster: str | None = Field(
        None, description="value of the node label `ray-subcluster`; absent: any node, in generation the sampler's"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Pool:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors {self.min_actors} exceeds max_actors {self.max_actors}: lower one or raise the other")
        return self


class ClusterConfig(Section):
    """What each role asks of the cluster."""

    sampler: Pool = Pool()
    target: Pool = Pool()
    judge: Pool = Pool(num_cpus=0.1)
    encoder: Pool = Field(Pool(num_cpus=0.1), description="of generation, where the recipe has an encoder")
    trainer: Pool = Field(
        Pool(),
        description="max_actors above min_actors: elastic, training goes on with as many workers as there is room for; without "
        "room for min_actors it waits, and says on what",
    )
    attacker: Pool = Field(Pool(), description="of the evaluation; beside the target where an attack needs both")
    local_cpus: Positive | None = Field(None, description="logical CPUs when no cluster is there and Ray starts here")
    object_store_gib: Annotated[float, Field(gt=0)] = Field(1.0, description="GiB, when Ray starts here")

    @model_validator(mode="after")
    def _elastic(self) -> ClusterConfig:
        # Ray Train 2.60 counts the room for an elastic worker group on nodes without this label alone.
        if self.trainer.subcluster and self.trainer.min_actors < self.trainer.max_actors:
            raise ValueError(
                "trainer.subcluster and an elastic trainer (max_actors above min_actors) do not go together: Ray Train looks for "
                "elastic workers on nodes without the label ray-subcluster: leave subcluster out, or set both counts equal"
            )
        return self


class TimeoutsConfig(Section):
    """Deadlines, in seconds. Past one, the run says what it waited for."""

    engine_start: Positive = 600
    no_progress: Positive = 900
    worker_group_start: Positive = 300


class TrackingConfig(Section):
    """Where training curves go, besides the JSON lines of the run directory."""

    tensorboard: bool = True
    mlflow: Annotated[str | None, Outside.TRACKER] = Field(None, description="name of an MLflow experiment (extra `mlflow`)")
    mlflow_uri: Annotated[PathText | None, Outside.ADDRESS] = Field(
        None, description="of the tracking server; absent: as MLflow's own settings say"
    )
    wandb: Annotated[str | None, Outside.TRACKER] = Field(None, description="project of Weights & Biases (extra `wandb`)")
