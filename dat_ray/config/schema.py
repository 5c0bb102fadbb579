"""What a run is: one pydantic model a section. A default lives here and nowhere else.

Neither torch nor ray is imported, so that reading and checking a recipe is instant.
Units are part of a field's description. Sections that change no result (`cluster`, `timeouts`,
`tracking`) stay out of the run's fingerprint: see `dat_ray.config.loading.fingerprint`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DType = Literal["float32", "bfloat16", "float16"]
Backend = Literal["vllm", "torch"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Columns(Section):
    """Names of a table's columns, for `format: table`."""

    goal: str = Field("goal", description="the request, one a row")
    target: str = Field("target", description="affirmative opening(s): a string, or a list of strings in JSONL and parquet")
    refusal: str | None = Field(None, description="contextual refusal; absent: `behaviors.default_refusal`")
    category: str | None = None
    id: str | None = Field(None, description="stable id; absent: a hash of the goal")


class BehaviorSource(Section):
    """Where behaviours come from: a path, a builtin set, or a Hugging Face data set."""

    path: str = Field(
        description="CSV, JSONL, JSON or parquet file, folder of such, `builtin:NAME`, or `hf:OWNER/NAME[/CONFIG][:SPLIT]`"
    )
    format: Literal["auto", "builtin", "harmbench", "advbench", "jailbreakbench", "table"] = "auto"
    targets_path: str | None = Field(None, description="HarmBench targets JSON: {BehaviorID: string or list}")
    refusals_path: str | None = Field(None, description="CSV with columns Behavior, Safe_Response")
    columns: Columns = Columns()
    where: dict[str, str] = Field({}, description="only rows whose column has this value, as in {label: safe}")
    limit: Positive | None = Field(None, description="first N behaviours only")
    targets_per_behavior: Positive | None = Field(None, description="first N targets of each behaviour only")


class BehaviorsConfig(BehaviorSource):
    """Training behaviours, with the held-out and harmless sets beside them."""

    heldout: BehaviorSource
    over_refusal: BehaviorSource | None = Field(None, description="harmless look-alikes; only `goal` is read")
    default_refusal: str = "I'm sorry, but I can't help with that."
    near_duplicate: Fraction = Field(0.8, description="token-set Jaccard from which a training goal counts as a held-out one")


class SamplerConfig(Section):
    """The masked diffusion model that in-paints prompts, and its law (method: in-painting, 2.2)."""

    model: str = Field(description="hub id, folder, or `embedded:smollm2-135m-infill`")
    backend: Backend = "vllm"
    dtype: DType = "bfloat16"
    layout: Literal["chat", "answer"] = Field(
        "answer", description="chat: masks in the user slot of the model's chat template; answer: MASK^K '\\nAnswer: ' y"
    )
    answer_prefix: str = "\nAnswer: "
    prompt_tokens: tuple[Positive, ...] = Field((64,), description="masked prompt lengths, one drawn for each row")
    steps: Positive = Field(64, description="denoising steps for the longest prompt; a row never takes more than its masks")
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    order: Literal["low_confidence", "random"] = "low_confidence"
    remask_condition: bool = Field(True, description="hide a random part of the response at every step")
    max_target_tokens: Positive = Field(128, description="the response is cut to this many tokens")
    batch_size: Positive = 32
    max_batched_tokens: Positive = Field(8192, description="tokens of one vLLM forward pass")


class TargetConfig(Section):
    """The model that is attacked and then fine-tuned."""

    model: str = Field(description="hub id, folder, or `embedded:smollm2-135m-instruct`")
    backend: Backend = "vllm"
    dtype: DType = "bfloat16"
    system_prompt: str | None = Field(None, description="absent: whatever the chat template does by default")
    max_new_tokens: Positive = Field(256, description="tokens of one completion")
    max_model_len: Positive = Field(1024, description="tokens of prompt and completion together")
    batch_size: Positive = 64
    max_batched_tokens: Positive = 4096
    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(1.0, description="GiB, CPU backend of vLLM only")


class JudgeConfig(Section):
    """Who says whether a completion is harmful."""

    name: Literal["refusal-rules"] = "refusal-rules"
    threshold: Fraction = Field(0.5, description="score above which a completion counts as harmful")


class GenerationConfig(Section):
    """How many candidates, and how they are written."""

    samples_per_target: Positive = Field(84, description="prompts for each (behaviour, target)")
    rows_per_block: Positive = Field(64, description="rows of one shard, the unit that a crash can cost")
    max_error_rate: Fraction = Field(0.05, description="share of failed rows past which the stage stops")


class SelectionConfig(Section):
    """Which candidates are trained on."""

    keep: Positive = Field(16, description="candidates kept for each behaviour")
    score: Literal["judge", "loglik", "judge_then_loglik"] = "judge_then_loglik"
    include_original: bool = Field(False, description="add the behaviour's own goal as a prompt")


class AttackConfig(Section):
    """The continuous attack of the inner loop (method 3.1)."""

    steps: NonNegative = 20
    step_size: Annotated[float, Field(ge=0.0)] = 0.1
    step_rule: Literal["sign", "l2_normalized", "raw"] = "l2_normalized"
    unit: Literal["absolute", "relative"] = Field(
        "relative", description="relative: step_size and radius are multiples of the mean embedding norm"
    )
    radius: Annotated[float, Field(ge=0.0)] | None = Field(None, description="L2 radius for each token; absent: no bound")
    positions: Literal["user", "prompt"] = Field("user", description="user message only, or every prompt token")


class LoraConfig(Section):
    """Low-rank adapter on all linear layers."""

    rank: Positive = 64
    alpha: Positive = 16
    dropout: Fraction = 0.0


class RetainConfig(Section):
    """Data on which the model should stay close to its old self."""

    path: str = Field(description="as `behaviors.path`; columns `prompt` and optionally `response` and `id`")
    limit: Positive | None = None
    max_response_tokens: Positive = Field(64, description="tokens of a response; missing ones are written by the base model")


class TrainingConfig(Section):
    """Adversarial fine-tuning (method 1.1, 1.4, 7)."""

    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    updates: Positive | None = Field(None, description="optimiser steps; absent: `epochs` over the training set")
    epochs: Annotated[float, Field(gt=0.0)] = 6.0
    harmful_rows: Positive = Field(4, description="harmful rows of an update, over all workers")
    retain_rows: NonNegative = Field(4, description="retain rows of an update, over all workers")
    away_weight: Annotated[float, Field(ge=0.0)] = 0.5
    toward_weight: Annotated[float, Field(ge=0.0)] = 0.5
    retain_weight: Annotated[float, Field(ge=0.0)] = 0.45
    away_cutoff: float | None = Field(None, description="nats: mean log p(y) below which a row is no longer pushed away")
    toward_cutoff: float | None = Field(None, description="nats: refusal cross-entropy under which a row is no longer pulled")
    max_tokens: Positive = Field(128, description="tokens of a training sequence")
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    warmup: Fraction = Field(0.03, description="share of the updates")
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 0.3
    dtype: DType = "bfloat16"
    checkpoint_every: Positive = Field(50, description="updates between checkpoints")
    attack: AttackConfig = AttackConfig()
    lora: LoraConfig = LoraConfig()
    retain: RetainConfig


class EvaluationConfig(Section):
    """Attacks on the base and the fine-tuned model."""

    attacks: tuple[Literal["direct", "inpainting"], ...] = ("direct", "inpainting")
    inpainting_samples: Positive = Field(16, description="prompts for each held-out behaviour, drawn with fresh seeds")
    max_new_tokens: Positive = 256
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap: Positive = Field(2000, description="resamples of behaviours for intervals of pooled rates")


class Pool(Section):
    """One role's actor pool."""

    min_actors: Positive = 1
    max_actors: Positive = 1
    num_cpus: Annotated[float, Field(gt=0.0)] = Field(1.0, description="logical CPUs of an actor")
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = Field(1, description="OpenMP threads of an actor on a CPU")
    subcluster: str | None = Field(None, description="value of the node label `ray-subcluster`; absent: any node")

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
    trainer: Pool = Pool()
    local_cpus: Positive | None = Field(None, description="logical CPUs when no cluster is there and Ray starts here")
    object_store_gib: Annotated[float, Field(gt=0)] = Field(1.0, description="GiB, when Ray starts here")


class TimeoutsConfig(Section):
    """Deadlines, in seconds. Past one, the run says what it waited for."""

    engine_start: Positive = 600
    no_progress: Positive = 900
    worker_group_start: Positive = 300


class TrackingConfig(Section):
    """Where training curves go, besides the JSON lines of the run directory."""

    tensorboard: bool = True


class Recipe(Section):
    """A whole run."""

    name: str
    description: str = ""
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
        if self.sampler.steps > longest:
            raise ValueError(
                f"sampler.steps {self.sampler.steps} exceeds the longest prompt of {longest} tokens: lower sampler.steps"
            )
        if self.training.retain_weight > 0 and self.training.retain_rows == 0:
            raise ValueError(
                "training.retain_weight is positive but training.retain_rows is 0: raise retain_rows or set the weight to 0"
            )
        return self
