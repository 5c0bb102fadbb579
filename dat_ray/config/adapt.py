"""Settings of `dat adapt`: a causal chat model becomes a masked-diffusion prompt in-painter through a LoRA.

Imports neither torch nor ray, like the rest of `config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dat_ray.config.loading import load_settings, recipe_text
from dat_ray.config.names import Name
from dat_ray.config.section import NO_EFFECT_ON_ROWS, NO_UPPER_LIMIT, DType, Fraction, NonNegative, Positive, Section


class AdaptConfig(Section):
    """How the adapter is trained. The schedule counts steps, never seconds, so that a run can be repeated."""

    mask_token_id: NonNegative | None = Field(
        None,
        description="a token that no text uses; absent: the tokenizer's mask token, else a reserved one, else a row of the "
        "vocabulary that no token has",
    )
    method: Literal["lora", "full"] = Field("lora", description="an adapter on all linear layers, or every weight")
    seed: NonNegative = 0
    steps: Positive = Field(400, description="optimizer steps")
    batch_size: Positive = Field(16, description="rows of a step")
    pool_batches: Positive = Field(8, description="rows of this many batches are sorted by length together, to pad little")
    learning_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-3
    warmup: Fraction = Field(0.05, description="share of the steps with a linearly rising learning rate; cosine to 0 after it")
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    max_grad_norm: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT] = Field(
        1.0, description="to which the gradient of a step is clipped; null: not clipped"
    )
    rank: Positive = 32
    alpha: Positive = 64
    loss_weight: Literal["mean", "inverse_rate"] = Field(
        "mean",
        description="mean: average over masked tokens, less noisy over few steps; "
        "inverse_rate: 1/t for each row, the likelihood bound of LLaDA, whose rare small t dominate a short run",
    )
    response_mask_share: Fraction = Field(0.5, description="share of rows whose response is masked too, at a rate of U(0,1)")
    response_cut_share: Fraction = Field(0.25, description="share of rows whose response is cut to a random shorter length")
    logit_chunk: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(
        128, description="masked positions that go through the output head at once"
    )
    checkpoint_every: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(50, description="steps between checkpoints")
    evaluate_every: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(
        100, description="steps between held-out evaluations; before the first and after the last there is one too"
    )
    evaluation_rows: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(
        96, description="held-out rows of an evaluation during training"
    )


class SynthesisConfig(Section):
    """Pairs that the chat model writes itself: a prompt from the opening of its user turn, then an answer."""

    seed: NonNegative = 0
    rows: Positive = Field(8192, description="prompts begun; unfinished, non-ASCII and oddly long ones are dropped")
    prompt_openers: tuple[str, ...] = Field(("",), description="words that the user turn begins with, one drawn a row")
    response_openers: tuple[str, ...] = Field(("",), description="words that the answer begins with, one drawn a row")
    temperature: Annotated[float, Field(gt=0.0)] = 0.9
    top_k: Positive = 50
    prompt_tokens: Positive = Field(32, description="a prompt that has not ended by then is dropped")
    response_tokens: Positive = Field(20, description="greedy tokens after the response opener")
    chunk: Positive = Field(256, description="rows between two writes, the most that a crash can cost")
    dtype: DType = "float32"


class PairsConfig(Section):
    """Columns of a data set given with `--pairs`."""

    prompt: str = Field("prompt", description="column of the requests")
    response: str = Field("response", description="column of the answers")
    limit: Positive | None = Field(None, description="first N rows only")


class TrainerConfig(Section):
    """Who trains; changes no result but for rounding."""

    min_actors: Positive = Field(
        1,
        description="1: this process. More: Ray Train workers, each with its share of every batch; all their nodes must share "
        "the folder of the sampler",
    )
    num_cpus: Annotated[float, Field(gt=0.0)] = Field(1.0, description="logical CPUs of a worker")
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    subcluster: str | None = Field(None, description="value of the node label `ray-subcluster`; absent: any node")


class AdaptTimeouts(Section):
    """Deadlines of several workers, in seconds. Past one, the run says what it waited for."""

    no_progress: Positive = Field(
        3600, description="for a worker that waits for the others, also while the first one measures held-out pairs"
    )
    worker_group_start: Positive = 300


class AdaptRecipe(Section):
    """Everything that `dat adapt` needs to make the same sampler again."""

    EXAMPLE = "leave --recipe out for the package's own"
    name: Name
    description: str = ""
    synthesis: SynthesisConfig = SynthesisConfig()
    heldout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    rows_per_prompt: Positive = 3
    canvas_opening: str | None = Field(
        None,
        description="control text in front of the prompt, instead of the chat template with its system prompt: "
        "a shorter canvas costs less at every step",
    )
    max_prompt_tokens: Positive = 32
    max_response_tokens: Positive = 24
    # Not float16: its small gradients round to 0 unless the loss is scaled, which is not done here.
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="weights of the model while it trains; an adapter is float32 in any case, method full needs it"
    )
    threads: Positive = Field(2, description="OpenMP threads of a process on a CPU")
    pairs: PairsConfig = PairsConfig()
    training: AdaptConfig = AdaptConfig()
    trainer: TrainerConfig = TrainerConfig()
    timeouts: AdaptTimeouts = AdaptTimeouts()

    @model_validator(mode="after")
    def _weights_that_learn(self) -> AdaptRecipe:
        if self.training.method == "full" and self.dtype != "float32":
            raise ValueError(
                f"training.method full trains the weights themselves, whose small updates vanish in {self.dtype}: "
                "set dtype to float32, or training.method to lora"
            )
        return self

    @model_validator(mode="after")
    def _a_row_each(self) -> AdaptRecipe:
        workers, rows = self.trainer.min_actors, self.training.batch_size
        if workers > rows:
            raise ValueError(f"{workers} workers share {rows} rows a step: lower trainer.min_actors or raise training.batch_size")
        return self


def load_adapt_config(name_or_path: str, overrides: Sequence[str] = ()) -> AdaptRecipe:
    """Loads an adaptation recipe by name or path and applies `--set` overrides.

    Raises:
        InputError: as `dat_ray.config.loading.load_recipe`.
    """
    return load_settings(AdaptRecipe, recipe_text(name_or_path, "adaptations"), name_or_path, overrides)
