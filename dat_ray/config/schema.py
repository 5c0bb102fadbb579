"""What a run is: one pydantic model a section. A default lives here and nowhere else.

Neither torch nor ray is imported, so that reading and checking a recipe is instant.
Units are part of a field's description. Sections that change no result (`cluster`, `timeouts`,
`tracking`) stay out of the run's fingerprint: see `dat_ray.config.loading.fingerprint`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DType = Literal["float32", "bfloat16", "float16"]
Backend = Literal["vllm", "torch"]
AttackName = Literal[
    "direct",
    "prefilling",
    "past_tense",
    "future_tense",
    "translation",
    "best_of_n",
    "templates",
    "pair",
    "gcg",
    "embedding",
    "inpainting",
    "inpainting_heldout",
]
JudgeName = Literal[
    "refusal-rules",
    "refusal-opening",
    "refusal-anywhere",
    "strongreject-rubric",
    "strongreject-finetuned",
    "harmbench",
    "llama-guard",
    "xstest",
]


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
        description="CSV, JSONL, JSON or parquet file, folder of such, `builtin:NAME`, `public:NAME`, or "
        "`hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`"
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
    refusal: Literal["contextual", "constant"] = Field(
        "contextual", description="contextual: the data's own, where it has one; constant: `default_refusal` for every behavior"
    )
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
    prompt_tokens: tuple[Positive, ...] = Field(
        (64,), min_length=1, description="masked prompt lengths, one drawn for each row: a number, a list, or {min: 16, max: 96}"
    )
    steps: Positive = Field(
        64, description="denoising steps for the longest prompt; without `refine` a row never takes more than its masks"
    )
    temperature: Annotated[float, Field(ge=0.0)] = Field(0.0, description="of a token's draw; 0 takes the most probable one")
    tempered: bool = Field(True, description="false: as in the reference code, where any temperature above 0 acts as 1")
    order: Literal["low_confidence", "random"] = Field(
        "low_confidence", description="commit the most confident positions first, or positions in random order"
    )
    remask_condition: bool = Field(True, description="hide a random part of the response at every step")
    guidance: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="w of classifier-free guidance against a wholly hidden response; above 0 doubles the forward passes"
    )
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="commit every position of at least this confidence; absent: as many as `steps` asks for"
    )
    entropy_bound: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="nats: commit the most confident positions while their entropies but the largest sum to at most this"
    )
    refine: Literal["random", "low_confidence"] | None = Field(
        None, description="past the steps that fill a prompt, mask random or the least confident tokens again and refill them"
    )
    refine_tokens: Positive = Field(8, description="prompt tokens that one refinement masks; it takes as many steps")
    max_target_tokens: Positive = Field(128, description="the response is cut to this many tokens")
    likelihood_samples: NonNegative = Field(
        0,
        description="samples (at least 2) of the bound on log p(x | y) that is stored with each candidate, given its own and "
        "another behavior's response, two forward passes each; 0: none. Torch backend only",
    )
    batch_size: Positive = Field(32, description="rows of one forward pass")
    max_batched_tokens: Positive = Field(8192, description="tokens of one vLLM forward pass")
    steps_per_call: Positive = Field(4, description="denoising steps after which rows may leave and enter, at the latest")
    quantization: Literal["fp8"] | None = Field(None, description="weights in 8 bits, backend vllm on a GPU that has them")
    tensor_parallel: Positive = Field(1, description="GPUs that share one engine, backend vllm")

    @field_validator("prompt_tokens", mode="before")
    @classmethod
    def _lengths(cls, value: Any) -> Any:
        """A number is a list of one, a range is the list of its lengths: one is drawn uniformly from either."""
        if isinstance(value, int):
            return (value,)
        if isinstance(value, dict):
            low, high = value.get("min"), value.get("max")
            if set(value) != {"min", "max"} or not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
                raise ValueError("write a range as {min: 16, max: 96}, with 1 <= min <= max")
            return tuple(range(low, high + 1))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SamplerConfig:
        parallel = [name for name in ("threshold", "entropy_bound") if getattr(self, name) is not None]
        if len(parallel) > 1:
            raise ValueError("threshold and entropy_bound are two rules for the same choice: give one of them")
        if parallel and self.order == "random":
            raise ValueError(f"{parallel[0]} commits by confidence: set order to low_confidence")
        if not self.tempered and self.temperature == 0:
            raise ValueError("tempered false says how a temperature above 0 acts: raise temperature or leave tempered out")
        if self.refine and self.steps <= min(self.prompt_tokens) and not parallel:
            raise ValueError(
                f"refine needs steps past those that fill a prompt: raise steps {self.steps} above {min(self.prompt_tokens)}"
            )
        if self.backend == "torch" and self.quantization:
            raise ValueError(f"quantization {self.quantization} needs backend vllm: set that or leave quantization out")
        if self.backend == "torch" and self.tensor_parallel > 1:
            raise ValueError(f"tensor_parallel {self.tensor_parallel} needs backend vllm: set that or tensor_parallel to 1")
        return self

    @model_validator(mode="after")
    def _likelihood_can_be_had(self) -> SamplerConfig:
        if self.likelihood_samples == 1:
            raise ValueError("sampler.likelihood_samples 1 leaves no standard error: give 0, or at least 2")
        if self.likelihood_samples and self.backend == "vllm":
            raise ValueError(
                "sampler.likelihood_samples needs log-probabilities, which vLLM's pooler does not return: "
                "set sampler.backend to torch, or likelihood_samples to 0"
            )
        return self


class EndpointConfig(Section):
    """A server that speaks OpenAI's chat completions."""

    url: str = Field(pattern="^https?://", description="its base address, as in http://localhost:8000/v1")
    api_key_env: str | None = Field(None, description="environment variable that holds the key; absent: no key is sent")
    timeout: Annotated[float, Field(gt=0.0)] = Field(60.0, description="seconds that one answer may take")
    retries: NonNegative = Field(3, description="further tries after a time-out, a lost connection, status 429 or 5xx")
    concurrency: Positive = Field(8, description="requests under way at the same time")


class TargetConfig(Section):
    """A chat model: the one that is attacked and then fine-tuned, an attacker, or a judge's reader."""

    model: str = Field(description="hub id, folder, or `embedded:smollm2-135m-instruct`; for an endpoint its name for the model")
    backend: Literal["vllm", "torch", "endpoint"] = "vllm"
    endpoint: EndpointConfig | None = Field(None, description="with `backend: endpoint`, and only then")
    template: Literal["chat", "none"] = Field("chat", description="none: prompts are sent as they are, as some judges need it")
    dtype: DType = "bfloat16"
    system_prompt: str | None = Field(None, description="absent: whatever the chat template does by default")
    max_new_tokens: Positive = Field(256, description="tokens of one completion")
    max_model_len: Positive = Field(1024, description="tokens of prompt and completion together")
    batch_size: Positive = 64
    max_batched_tokens: Positive = 4096
    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(1.0, description="GiB, CPU backend of vLLM only")

    @model_validator(mode="after")
    def _one_backend(self) -> TargetConfig:
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("`backend: endpoint` and the section `endpoint` go together: give both or neither")
        return self


class JudgeConfig(Section):
    """Who says whether a completion is harmful; `dat evaluate --list` tells what each needs."""

    name: JudgeName = "refusal-rules"
    threshold: Fraction = Field(0.5, description="score above which a completion counts as harmful")
    reader: TargetConfig | None = Field(None, description="the model that reads, for judges that are models")
    prompt_path: str | None = Field(
        None, description="file with the reader's prompt; absent: the project's own, where it has one"
    )

    @model_validator(mode="after")
    def _has_reader(self) -> JudgeConfig:
        if self.name.startswith("refusal-") != (self.reader is None):
            raise ValueError(
                f"the judge {self.name} reads by rules: leave `reader` out"
                if self.reader
                else f"the judge {self.name} is a model: name it in `reader`"
            )
        return self


class GenerationConfig(Section):
    """How many candidates, and how they are written."""

    samples_per_target: Positive = Field(84, description="prompts for each (behaviour, target)")
    rows_per_block: Positive = Field(64, description="rows of one shard, the unit that a crash can cost")
    max_error_rate: Fraction = Field(0.05, description="share of failed rows past which the stage stops")


class SelectionConfig(Section):
    """Which prompts are trained on."""

    source: Literal["candidates", "goals", "mixture"] = Field(
        "candidates",
        description="candidates: the best in-painted prompts (DAT); goals: the behaviours' own requests, each with all its "
        "targets (CAT); mixture: both, an update of either kind at a time (MixAT)",
    )
    rewrites: str | None = Field(
        None, description="mixture only: table with columns goal and prompt, several a goal; absent: the candidates"
    )
    keep: Positive = Field(16, description="candidates kept for each behaviour")
    score: Literal["judge", "loglik", "judge_then_loglik"] = "judge_then_loglik"
    include_original: bool = Field(False, description="add the behaviour's own goal as a prompt")


class AttackConfig(Section):
    """The continuous attack of the inner loop (method 3.1, 3.7)."""

    steps: NonNegative = 20
    step_size: Annotated[float, Field(ge=0.0)] = 0.1
    step_rule: Literal["sign", "l2_normalized", "adam", "raw"] = "l2_normalized"
    unit: Literal["absolute", "relative"] = Field(
        "relative", description="relative: step_size and radius are multiples of the mean embedding norm"
    )
    radius: Annotated[float, Field(ge=0.0)] | None = Field(None, description="L2 radius for each token; absent: no bound")
    radius_unit: Literal["absolute", "relative"] | None = Field(None, description="of the radius; absent: as `unit`")
    positions: Literal["user", "prompt", "sequence"] = Field(
        "user", description="user message only, every prompt token, or the responses' tokens too"
    )
    layers: Annotated[tuple[Literal["embedding"] | NonNegative, ...], Field(min_length=1)] = Field(
        ("embedding",), description="what is perturbed: the embeddings, and the output of decoder layers by number from 0"
    )
    objective: Literal["harmful_ce", "joint"] = Field(
        "harmful_ce",
        description="harmful_ce: make the response likely (CAT); joint: the update's away and toward terms with the responses "
        "exchanged, so that the refusal becomes unlikely too (DAT equation 3, LAT)",
    )
    iterate: Literal["last", "best"] = Field("last", description="last, or each row's best by the attack's own objective")


class LoraConfig(Section):
    """Low-rank adapter on linear layers."""

    rank: Positive = 64
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="all linear layers but the head, or names of modules such as q_proj"
    )


class RetainConfig(Section):
    """Data on which the model should stay close to its old self."""

    path: str = Field(description="as `behaviors.path`; columns `prompt` and optionally `response` and `id`, or `messages`")
    layout: Literal["columns", "messages"] = Field(
        "columns", description="columns: `prompt` and `response`; messages: the first user message of a chat, and its answer"
    )
    limit: Positive | None = None
    max_prompt_characters: Positive | None = Field(None, description="rows with a longer prompt are left out")
    max_response_tokens: Positive = Field(64, description="tokens of a response that are trained on")
    answer_tokens: Positive = Field(
        64, description="tokens of a missing response, which the base model writes; it is judged whole, to leave out refusals"
    )
    tokens: Literal["response", "conversation"] = Field(
        "response", description="on which tokens the retain term acts: the response's, or those from the user message on"
    )


class TrainingConfig(Section):
    """Adversarial fine-tuning (method 1.1, 1.4, 3, 7)."""

    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    updates: Positive | None = Field(None, description="optimiser steps; absent: `epochs` over the training set")
    epochs: Annotated[float, Field(gt=0.0)] = 6.0
    harmful_rows: Positive = Field(4, description="harmful rows of an update, over all workers")
    retain_rows: NonNegative = Field(4, description="retain rows of an update, over all workers")
    micro_rows: Positive | None = Field(
        None, description="rows that go through a worker's model at once, less memory for the same update; absent: all"
    )
    rewrite_share: Fraction = Field(0.5, description="share of updates on rewrites, for selection.source mixture")
    steps_per_attack: Positive = Field(1, description="optimiser steps of an update, all under the perturbation of one attack")
    away: Literal["neg_ce", "unlikelihood", "ipo"] = Field(
        "neg_ce",
        description="neg_ce: mean log p(y); unlikelihood: mean -log(1 - p(y_t)); ipo: away and toward as one preference loss",
    )
    away_weight: Annotated[float, Field(ge=0.0)] = 0.5
    toward_weight: Annotated[float, Field(ge=0.0)] = Field(0.5, description="not used by ipo, whose one weight is away_weight")
    ipo_beta: Annotated[float, Field(gt=0.0)] = Field(0.25, description="the preferred margin is 1 / (2 beta) nats")
    away_cutoff: float | None = Field(
        None,
        description="nats: mean log p(y) below which a row is no longer pushed away; for unlikelihood and ipo, "
        "log p of a token below which it no longer counts",
    )
    toward_cutoff: float | None = Field(
        None,
        description="nats: refusal cross-entropy under which a row is no longer pulled; for ipo, of a token of the refusal",
    )
    cutoff_form: Literal["clamp", "soft"] = Field(
        "clamp", description="clamp: no gradient past a cutoff; soft: CAT's cutoff + 0.001 * value"
    )
    loss_clip: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="nats M: a row's weighted away and toward loss stays in [-M, M]; absent: unbounded"
    )
    retain_loss: Literal["kl_forward", "kl_reverse", "ce"] = Field(
        "kl_forward",
        description="kl_forward: KL(base || model); kl_reverse: KL(model || base); ce: -log p of the data's response",
    )
    retain_weight: Annotated[float, Field(ge=0.0)] = 0.45
    retain_normalized: bool = Field(False, description="divide the retain term by its own value, without gradient (LAT)")
    max_tokens: Positive = Field(128, description="tokens of a training sequence")
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    warmup: Fraction = Field(0.03, description="share of the updates")
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 0.3
    dtype: DType = "bfloat16"
    activation_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    compile: bool = Field(False, description="compile the decoder's layers with torch.compile")
    checkpoint_every: Positive = Field(50, description="updates between checkpoints")
    stop_away: float | None = Field(
        None, description="nats: divergence guard, stops a run whose mean log p(y) falls below this; absent: no guard"
    )
    stop_retain: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="nats: divergence guard, stops a run whose retain term exceeds this; absent: no guard"
    )
    attack: AttackConfig = AttackConfig()
    lora: LoraConfig = LoraConfig()
    retain: RetainConfig | None = Field(None, description="needed where retain_rows is positive")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.retain_rows and self.retain is None:
            raise ValueError(
                "retain_rows is positive but there is no retain section: add one with a path, or set retain_rows to 0"
            )
        if self.retain_weight > 0 and self.retain_rows == 0:
            raise ValueError("retain_weight is positive but retain_rows is 0: raise retain_rows or set the weight to 0")
        if self.away == "ipo" and self.attack.objective == "joint":
            raise ValueError("attack.objective joint needs separate away and toward terms: choose another away, or harmful_ce")
        return self


class DirectConfig(Section):
    """The goal as it is. Published: 1000 samples at temperature 1 (DAT)."""

    samples: Positive = 1
    temperature: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _samples_differ(self) -> DirectConfig:
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError("samples above 1 at temperature 0 would all be the same: raise the temperature or ask once")
        return self


class BestOfNConfig(Section):
    """Best-of-N (arXiv 2412.03556). DAT: 1000 samples at temperature 1, sigma 0.4."""

    samples: Positive = 1000
    sigma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.4, description="strength of the perturbation")
    temperature: Annotated[float, Field(ge=0.0)] = 1.0


class TenseConfig(Section):
    """Requests moved to the past or the future (arXiv 2407.11969: 20 rewrites)."""

    samples: Positive = Field(20, description="rewrites of each goal and tense")


class TranslationConfig(Section):
    """Requests in other languages (arXiv 2310.02446), answers translated back for the judge."""

    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("Zulu", "Scottish Gaelic", "Hmong", "Guarani")
    back: bool = Field(True, description="the judge reads the answer translated back into English")


class PairConfig(Section):
    """PAIR (arXiv 2310.08419): the attacker improves its prompt step by step. DAT: 20 steps, 1 stream."""

    steps: Positive = Field(20, description="attempts of a stream")
    streams: Positive = Field(1, description="conversations with the attacker for each behavior")
    history: Positive = Field(3, description="earlier attempts that the attacker sees")
    max_new_tokens: Positive = Field(500, description="tokens of one answer of the attacker")


class GcgConfig(Section):
    """GCG (arXiv 2307.15043): a suffix found by gradients and exchanges of tokens. DAT: 250 steps, width 512, top-k 256."""

    steps: Positive = 250
    search_width: Positive = Field(512, description="candidate suffixes of one step")
    top_k: Positive = Field(256, description="tokens considered at each position")
    n_replace: Positive = Field(1, description="tokens exchanged in a candidate")
    suffix: str = Field(" ".join(["x"] * 20), description="where the search starts")
    batch_size: Positive = Field(64, description="candidates of one forward pass")
    attempts: Positive = Field(
        1, description="suffixes that the model is asked with: evenly spaced in the search, its last among them"
    )


class EmbeddingConfig(Section):
    """The continuous attack of training, on the held-out goals."""

    attack: AttackConfig = AttackConfig()

    @model_validator(mode="after")
    def _on_the_prompt(self) -> EmbeddingConfig:
        if self.attack.layers != ("embedding",) or self.attack.objective != "harmful_ce" or self.attack.positions == "sequence":
            raise ValueError(
                "the evaluation perturbs the embeddings of a prompt toward its response: "
                "leave layers and objective at their defaults, and positions at user or prompt"
            )
        return self


class UtilityConfig(Section):
    """Benchmarks by lm-eval (extra `utility`)."""

    tasks: tuple[str, ...] = Field((), description="names of lm-eval tasks, as in mmlu, arc_easy, arc_challenge")
    include_path: str | None = Field(None, description="folder with further task files (YAML)")
    limit: Positive | None = Field(None, description="first N questions of each task only")
    num_fewshot: NonNegative | None = Field(None, description="examples before each question; absent: the task's own number")
    batch_size: Positive = 8


class EvaluationConfig(Section):
    """Attacks on the models, and what else is measured of them. Defaults of the attacks are the published settings."""

    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1)] = ("direct", "inpainting")
    inpainting_samples: Positive = Field(16, description="prompts for each held-out behaviour, drawn with fresh seeds")
    direct: DirectConfig = DirectConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()
    tense: TenseConfig = TenseConfig()
    translation: TranslationConfig = TranslationConfig()
    pair: PairConfig = PairConfig()
    gcg: GcgConfig = GcgConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    templates_path: str | None = Field(None, description="CSV, JSONL or JSON file with a column `template` that holds {goal}")
    attacker: TargetConfig | None = Field(None, description="writes the prompts of past_tense, future_tense, translation, pair")
    heldout_sampler: SamplerConfig | None = Field(
        None, description="draws the prompts of inpainting_heldout; not the training one"
    )
    second_judge: JudgeConfig | None = Field(None, description="scores the same completions; the disagreement is shown")
    refusal_judge: JudgeConfig = Field(JudgeConfig(), description="reads the answers to harmless look-alikes")
    utility: UtilityConfig = UtilityConfig()
    kl_rows: NonNegative = Field(0, description="retain rows on which the drift KL(base || model) is measured; 0: not measured")
    max_new_tokens: Positive = 256
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap: Positive = Field(2000, description="resamples of behaviours for intervals of pooled rates")

    @model_validator(mode="after")
    def _attacks_have_what_they_need(self) -> EvaluationConfig:
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError("attacks names one attack twice: name each once")
        if not self.refusal_judge.name.startswith(("refusal-", "xstest")):
            raise ValueError(f"refusal_judge {self.refusal_judge.name} judges harm, not refusals: use refusal-rules or xstest")
        needs = {
            "past_tense": "attacker",
            "future_tense": "attacker",
            "translation": "attacker",
            "pair": "attacker",
            "templates": "templates_path",
            "inpainting_heldout": "heldout_sampler",
        }
        for attack in self.attacks:
            if attack in needs and getattr(self, needs[attack]) is None:
                raise ValueError(f"the attack {attack} needs evaluation.{needs[attack]}: give it or leave the attack out")
        return self


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
    attacker: Pool = Field(Pool(), description="of the evaluation; beside the target where an attack needs both")
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
    mlflow: str | None = Field(None, description="name of an MLflow experiment (extra `mlflow`)")
    mlflow_uri: str | None = Field(None, description="of the tracking server; absent: as MLflow's own settings say")
    wandb: str | None = Field(None, description="project of Weights & Biases (extra `wandb`)")


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
