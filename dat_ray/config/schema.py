"""What a run is: one pydantic model a section, in the modules beside this one. A default lives there and nowhere else.

Neither torch nor ray is imported, so that reading and checking a recipe is instant.
Units are part of a field's description. What changes no row is marked `NO_EFFECT_ON_ROWS` and stays out of the
run's fingerprint: see `dat_ray.config.loading.fingerprint`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from dat_ray.config.cluster import ClusterConfig, TimeoutsConfig, TrackingConfig
from dat_ray.config.data import GAINS, BehaviorsConfig, GenerationConfig, SelectionConfig
from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.models import EncoderConfig, JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.config.names import Name
from dat_ray.config.section import NO_EFFECT_ON_ROWS, NonNegative, Positive, Section
from dat_ray.config.training import TrainingConfig
from dat_ray.errors import InputError

# Fields of earlier versions, each with the one value that asks for what is done without it.
RETIRED: dict[str, Any] = {"round": 0}


class Recipe(Section):
    """A whole run."""

    name: Annotated[Name, NO_EFFECT_ON_ROWS]
    description: Annotated[str, NO_EFFECT_ON_ROWS] = ""
    sources: Annotated[dict[str, str], NO_EFFECT_ON_ROWS] = Field(
        {}, description="where values come from: dotted field or section -> `paper: ...`, `code: ...` or `ours: ...`"
    )
    seed: NonNegative = 0
    rounds: Positive = Field(
        1,
        description="online rounds: each draws new prompts, lets the model that the round before has trained answer them, and "
        "trains on from its adapter, with the updates of `training` once more",
    )
    behaviors: BehaviorsConfig
    sampler: SamplerConfig
    target: TargetConfig
    judge: JudgeConfig = JudgeConfig()
    encoder: EncoderConfig | None = Field(
        None, description="gives each candidate the similarity of its prompt to its goal; absent: none is measured"
    )
    generation: GenerationConfig = GenerationConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: Annotated[ClusterConfig, NO_EFFECT_ON_ROWS] = ClusterConfig()
    timeouts: Annotated[TimeoutsConfig, NO_EFFECT_ON_ROWS] = TimeoutsConfig()
    tracking: Annotated[TrackingConfig, NO_EFFECT_ON_ROWS] = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, tree: Any) -> Any:
        """Recipes and run directories of earlier versions open where they say what this version does anyway."""
        if not isinstance(tree, dict):
            return tree
        for field, value in RETIRED.items():
            if field in tree and tree[field] != value:
                raise InputError(field, tree[field], "is no field of a recipe any more: leave it out")
        return {field: value for field, value in tree.items() if field not in RETIRED}

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        longest = max(self.sampler.prompt_tokens)
        if self.sampler.steps > longest and self.sampler.refine is None:
            raise ValueError(
                f"sampler.steps {self.sampler.steps} exceeds the longest prompt of {longest} tokens: lower sampler.steps"
            )
        self._limits_are_measured()
        self._rounds_draw()
        if self.target.backend == "endpoint":
            raise ValueError("the target is fine-tuned, which an endpoint's model cannot be: use the backend vllm or torch")
        for field, source in self.sources.items():
            if not source.startswith(("paper: ", "code: ", "ours: ")):
                raise ValueError(f"a source begins with paper:, code: or ours:, not as that of {field} ({source}): correct it")
        for section, (engine, pool) in self.engines().items():
            gpus = getattr(self.cluster, pool).num_gpus
            if engine.tensor_parallel > max(1, gpus):
                raise ValueError(
                    f"{section}.tensor_parallel {engine.tensor_parallel} exceeds cluster.{pool}.num_gpus {gpus:g}: give each "
                    f"{pool} as many GPUs as it shares its model over"
                )
        if self.selection.rewrites is not None and self.selection.source != "mixture":
            raise ValueError(
                f"selection.rewrites is read only with source mixture, not {self.selection.source}: change one of them"
            )
        return self

    def engines(self) -> dict[str, tuple[SamplerConfig | TargetConfig, str]]:
        """Every model that the recipe names: dotted section -> its settings and the field of `cluster` with its pool."""
        evaluation, second = self.evaluation, self.evaluation.second_judge
        found: dict[str, tuple[SamplerConfig | TargetConfig | None, str]] = {
            "sampler": (self.sampler, "sampler"),
            "target": (self.target, "target"),
            "judge.reader": (self.judge.reader, "judge"),
            "evaluation.attacker": (evaluation.attacker, "attacker"),
            "evaluation.heldout_sampler": (evaluation.heldout_sampler, "sampler"),
            "evaluation.second_judge.reader": (None if second is None else second.reader, "judge"),
            "evaluation.refusal_judge.reader": (evaluation.refusal_judge.reader, "judge"),
        }
        return {section: (config, pool) for section, (config, pool) in found.items() if config is not None}

    def _rounds_draw(self) -> None:
        selection = self.selection
        if self.rounds > 1 and (selection.source == "goals" or selection.rewrites is not None):
            what = "selection.rewrites" if selection.rewrites is not None else "selection.source goals"
            raise ValueError(f"rounds {self.rounds} draws new prompts in each, and {what} draws none: set rounds to 1")
        if self.rounds == 1 and selection.earlier_share:
            raise ValueError("selection.earlier_share is of rounds after the first: raise rounds, or leave it out")

    def _limits_are_measured(self) -> None:
        selection = self.selection
        least, most = selection.min_goal_similarity, selection.max_goal_similarity
        limits = {
            "selection.min_goal_similarity": least,
            "selection.max_goal_similarity": most,
            "evaluation.min_goal_similarity": self.evaluation.min_goal_similarity,
        }
        for field, limit in limits.items():
            if limit is not None and self.encoder is None:
                raise ValueError(f"{field} needs an encoder: set encoder, or leave the limit out")
        if least is not None and most is not None and least >= most:
            raise ValueError(
                f"no prompt is at or above selection.min_goal_similarity {least} and below selection.max_goal_similarity {most}: "
                "raise the ceiling, or lower the floor"
            )
        self._retained_prompts_are_measured()
        evaluation = self.evaluation
        if evaluation.kl_rows and evaluation.kl_data == "look_alikes" and self.behaviors.over_refusal is None:
            raise ValueError(
                "evaluation.kl_data look_alikes needs harmless look-alikes: set behaviors.over_refusal, or use retain"
            )
        if selection.score in GAINS and self.generation.neutral_prompt is None:
            raise ValueError(
                f"selection.score {selection.score} compares with a neutral prompt: set generation.neutral_prompt, or use loglik"
            )

    def _retained_prompts_are_measured(self) -> None:
        retain, selection = self.training.retain, self.selection
        share = 0.0 if retain is None else retain.inpainted_share
        if selection.off_goal == "retain" and (selection.min_goal_similarity is None or not share):
            raise ValueError(
                "selection.off_goal retain needs selection.min_goal_similarity and training.retain.inpainted_share: set both, or "
                "leave off_goal at drop"
            )
        if not share:
            return
        if self.encoder is None or self.behaviors.harmless is None:
            raise ValueError(
                "training.retain.inpainted_share needs an encoder and behaviors.harmless: they tell which prompts "
                "are harmless; set both, or the share to 0"
            )
