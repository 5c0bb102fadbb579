"""The part of a recipe about adversarial fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dat_ray.config.section import (
    NO_EFFECT_ON_ROWS,
    NO_LOWER_LIMIT,
    NO_UPPER_LIMIT,
    DType,
    Fraction,
    NonNegative,
    Outside,
    PathText,
    Positive,
    Section,
)


class AttackConfig(Section):
    """The continuous attack of the inner loop (method 3.1, 3.7)."""

    steps: NonNegative = 20
    step_size: Annotated[float, Field(ge=0.0)] = 0.1
    step_rule: Literal["sign", "l2_normalized", "adam", "raw"] = "l2_normalized"
    unit: Literal["absolute", "relative"] = Field(
        "relative", description="relative: step_size and radius are multiples of the mean embedding norm"
    )
    radius: Annotated[Annotated[float, Field(ge=0.0)] | None, NO_UPPER_LIMIT] = Field(
        None, description="L2 radius for each token; absent: no bound"
    )
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

    @model_validator(mode="after")
    def _units_fit_layers(self) -> AttackConfig:
        relative = "relative" in (self.unit, self.radius_unit if self.radius is not None else None)
        if relative and any(layer != "embedding" for layer in self.layers):
            # A decoder layer's output is many times as long as an embedding, and longer with depth.
            raise ValueError(
                "layers names decoder layers, and relative sizes are multiples of the embedding norm, which is not the size of "
                "their outputs: set unit (and radius_unit) to absolute, with sizes for these layers"
            )
        return self


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

    path: Annotated[PathText, Outside.FILE] = Field(
        description="as `behaviors.path`; columns `prompt` and optionally `response` and `id`; or, without `prompt`, those of "
        "Alpaca (`instruction`, `input`, `output`), or a chat (`messages` or `conversations`)"
    )
    layout: Literal["columns", "messages"] = Field(
        "columns",
        description="columns: what the columns tell; messages: a chat even beside `prompt`: the first user message that the "
        "assistant answers, and the answer",
    )
    limit: Positive | None = None
    max_prompt_characters: Positive | None = Field(None, description="rows with a longer prompt are left out")
    max_response_tokens: Positive = Field(
        64, description="tokens of a response that are trained on; fewer where max_tokens leaves none"
    )
    answer_tokens: Positive = Field(
        64, description="tokens of a missing response, which the base model writes; it is judged whole, to leave out refusals"
    )
    inpainted_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="share of the retain set that the sampler draws, in-painted for behaviors.harmless (and off the goal, with "
        "selection.off_goal retain), so that its style does not stand for harm; fewer where fewer are fit; published: 0",
    )
    max_training_goal_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.4,
        description="an in-painted prompt is fit to be retained only where its cosine to every training goal under `encoder` is "
        "below this, and to some harmless request above that to every goal",
    )
    tokens: Literal["response", "conversation"] = Field(
        "response", description="on which tokens the retain term acts: the response's, or those from the user message on"
    )


class TrainingConfig(Section):
    """Adversarial fine-tuning (method 1.1, 1.4, 3, 7)."""

    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    updates: Positive | None = Field(None, description="optimizer steps; absent: `epochs` over the training set")
    epochs: Annotated[float, Field(gt=0.0)] = 6.0
    harmful_rows: Positive = Field(4, description="harmful rows of an update, over all workers")
    retain_rows: NonNegative = Field(4, description="retain rows of an update, over all workers")
    micro_rows: Annotated[Positive | None, NO_EFFECT_ON_ROWS] = Field(
        None, description="rows that go through a worker's model at once, less memory for the same update; absent: all"
    )
    rewrite_share: Fraction = Field(0.5, description="share of updates on rewrites, for selection.source mixture")
    steps_per_attack: Positive = Field(1, description="optimizer steps of an update, all under the perturbation of one attack")
    fresh_optimizer: bool = Field(
        False, description="begin each update with an optimizer that remembers nothing of those before it"
    )
    away: Literal["neg_ce", "unlikelihood", "ipo"] = Field(
        "neg_ce",
        description="neg_ce: mean log p(y); unlikelihood: mean -log(1 - p(y_t)); ipo: away and toward as one preference loss",
    )
    away_weight: Annotated[float, Field(ge=0.0)] = 0.5
    toward_weight: Annotated[float, Field(ge=0.0)] = Field(0.5, description="not used by ipo, whose one weight is away_weight")
    ipo_beta: Annotated[float, Field(gt=0.0)] = Field(0.25, description="the preferred margin is 1 / (2 beta) nats")
    away_cutoff: Annotated[float | None, NO_LOWER_LIMIT] = Field(
        None,
        description="nats: mean log p(y) below which a row is no longer pushed away; for unlikelihood and ipo, "
        "log p of a token below which it no longer counts",
    )
    toward_cutoff: Annotated[float | None, NO_LOWER_LIMIT] = Field(
        None,
        description="nats: refusal cross-entropy under which a row is no longer pulled; for ipo, of a token of the refusal",
    )
    cutoff_form: Literal["clamp", "soft"] = Field(
        "clamp", description="clamp: no gradient past a cutoff; soft: CAT's cutoff + 0.001 * value"
    )
    loss_clip: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT] = Field(
        None, description="nats M: a row's weighted away and toward loss stays in [-M, M]; absent: unbounded"
    )
    retain_loss: Literal["kl_forward", "kl_reverse", "ce"] = Field(
        "kl_forward",
        description="kl_forward: KL(base || model); kl_reverse: KL(model || base); ce: -log p of the data's response",
    )
    retain_weight: Annotated[float, Field(ge=0.0)] = 0.45
    retain_normalized: bool = Field(
        False, description="divide the retain term by its own value, without gradient, plus 1e-8 nats an element (LAT)"
    )
    max_tokens: Positive = Field(
        128,
        description="tokens of a training sequence: the prompt whole, and of the response what then has room; a prompt that "
        "leaves room for fewer than 8 response tokens is left out",
    )
    end_of_turn: Literal["none", "refusal", "retain", "all"] = Field(
        "none",
        description="responses that end with the template's end-of-turn token, so that the model stops after them: refusals, "
        "answers of the retain set, or all, harmful ones too",
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    warmup: Fraction = Field(0.03, description="share of the updates")
    max_grad_norm: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT] = Field(
        0.3, description="to which the gradient of an update is clipped; null: not clipped"
    )
    dtype: DType = Field(
        "bfloat16",
        description="of the frozen weights and of hidden states; the adapter is float32, float16 scales the loss; "
        "auto: see `sampler`",
    )
    activation_checkpointing: Annotated[bool, NO_EFFECT_ON_ROWS] = Field(
        False, description="compute activations again in the backward pass: less memory"
    )
    compile: Annotated[bool, NO_EFFECT_ON_ROWS] = Field(
        False,
        description="compile the decoder's layers with torch.compile; what rows share before the user message then goes "
        "through the model with every row",
    )
    cuda_graph: Annotated[bool, NO_EFFECT_ON_ROWS] = Field(
        True,
        description="on a GPU, record the attack's step once an update and replay it: the same kernels without the time that "
        "launching them takes; without compile, activation_checkpointing and shard_weights only",
    )
    shard_weights: Annotated[bool, NO_EFFECT_ON_ROWS] = Field(
        False,
        description="split the frozen weights of the decoder's layers over the workers (FSDP2), for models that one device "
        "does not hold; harmful_rows and retain_rows must then be multiples of the number of workers",
    )
    checkpoint_every: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(50, description="updates between checkpoints")
    keep_every: Annotated[Positive | None, NO_EFFECT_ON_ROWS] = Field(
        None, description="updates between adapters that are kept for good beside the final one; absent: none"
    )
    stop_away: Annotated[float | None, NO_LOWER_LIMIT, NO_EFFECT_ON_ROWS] = Field(
        None, description="nats: divergence guard, stops a run whose mean log p(y) falls below this; absent: no guard"
    )
    stop_retain: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT, NO_EFFECT_ON_ROWS] = Field(
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
        if self.compile and self.shard_weights:
            raise ValueError("compile and shard_weights do not go together: set one of them to false")
        if self.away == "ipo" and self.attack.objective == "joint":
            raise ValueError("attack.objective joint needs separate away and toward terms: choose another away, or harmful_ce")
        return self
