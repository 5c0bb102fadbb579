"""What a run is: one pydantic model a section, in the modules beside this one. A default lives there and nowhere else.

Neither torch nor ray is imported, so that reading and checking a recipe is instant.
Units are part of a field's description. Sections that change no result (`cluster`, `timeouts`,
`tracking`) stay out of the run's fingerprint: see `dat_ray.config.loading.fingerprint`.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from dat_ray.config.cluster import ClusterConfig, TimeoutsConfig, TrackingConfig
from dat_ray.config.data import BehaviorsConfig, GenerationConfig, SelectionConfig
from dat_ray.config.evaluation import EvaluationConfig
from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.config.section import NonNegative, Section
from dat_ray.config.training import TrainingConfig


class Recipe(Section):
    """A whole run."""

    name: str
    description: str = ""
    sources: dict[str, str] = Field(
        {}, description="where values come from: dotted field or section -> `paper: ...`, `code: ...` or `ours: ...`"
    )
    seed: NonNegative = 0
    round: NonNegative = 0
    behaviors: BehaviorsConfig
    sampler: SamplerConfig
    target: TargetConfig
    judge: JudgeConfig = JudgeConfig()
    generation: GenerationConfig = GenerationConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        longest = max(self.sampler.prompt_tokens)
        if self.sampler.steps > longest and self.sampler.refine is None:
            raise ValueError(
                f"sampler.steps {self.sampler.steps} exceeds the longest prompt of {longest} tokens: lower sampler.steps"
            )
        if self.target.backend == "endpoint":
            raise ValueError("the target is fine-tuned, which an endpoint's model cannot be: use the backend vllm or torch")
        for field, source in self.sources.items():
            if not source.startswith(("paper: ", "code: ", "ours: ")):
                raise ValueError(f"a source begins with paper:, code: or ours:, not as that of {field} ({source}): correct it")
        if self.sampler.tensor_parallel > max(1, self.cluster.sampler.num_gpus):
            raise ValueError(
                f"sampler.tensor_parallel {self.sampler.tensor_parallel} exceeds cluster.sampler.num_gpus "
                f"{self.cluster.sampler.num_gpus:g}: give each sampler as many GPUs as it shares its model over"
            )
        if self.selection.rewrites is not None and self.selection.source != "mixture":
            raise ValueError(
                f"selection.rewrites is read only with source mixture, not {self.selection.source}: change one of them"
            )
        return self
