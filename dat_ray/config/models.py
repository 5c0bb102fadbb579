"""Parts of a recipe about models: the sampler, the target, endpoints and judges."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from dat_ray.config.judge_names import LIBRARY, JudgeName, library_judge, needs_reader
from dat_ray.config.section import (
    NO_EFFECT_ON_ROWS,
    NO_UPPER_LIMIT,
    STORED,
    Backend,
    DType,
    Fraction,
    NonNegative,
    Outside,
    PathText,
    Positive,
    Section,
)
from dat_ray.secrets import declare_secret


class EngineConfig(Section):
    """A model, and how an engine of it is started."""

    # Those that hold weights in 8 bits.
    quantizing: ClassVar[frozenset[str]] = frozenset({"vllm"})

    model: PathText
    # Which weights a name stands for is recorded in a run directory's weights.json and compared there, not by the name's form.
    revision: Annotated[str, Field(min_length=1), NO_EFFECT_ON_ROWS] = Field(
        "main",
        description="branch, tag or commit of a hub id; a run keeps to the commit that main was when it began. Of an adapter, "
        "with that of its base behind a plus sign, as in main+v1",
    )
    quantization: Literal["fp8"] | None = Field(
        None, description="weights in 8 bits on a GPU that computes with them; of the sampler both backends, else backend vllm"
    )
    tensor_parallel: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(1, description="GPUs that share one engine, backend vllm")
    gpu_memory_utilization: Annotated[float | None, Field(gt=0.0, le=1.0), NO_EFFECT_ON_ROWS] = Field(
        None,
        description="share of a GPU's memory for the engine and its cache, backend vllm; absent: vLLM's own, nearly all",
    )

    @model_validator(mode="after")
    def _settings_of_vllm(self) -> EngineConfig:
        backend = getattr(self, "backend", "vllm")
        if backend == "vllm":
            return self
        if self.quantization and backend not in self.quantizing:
            raise ValueError(f"quantization {self.quantization} needs backend vllm: set that or leave quantization out")
        if self.tensor_parallel > 1:
            raise ValueError(f"tensor_parallel {self.tensor_parallel} needs backend vllm: set that or tensor_parallel to 1")
        if self.gpu_memory_utilization is not None:
            raise ValueError("gpu_memory_utilization needs backend vllm: set that or leave gpu_memory_utilization out")
        if backend == "endpoint" and self.revision != "main":
            raise ValueError("revision is up to the server with `backend: endpoint`: leave it out")
        return self


class SamplerConfig(EngineConfig):
    """The masked diffusion model that in-paints prompts, and its law (method: in-painting, 2.2)."""

    quantizing: ClassVar[frozenset[str]] = frozenset({"vllm", "torch"})

    model: PathText = Field(description="hub id, folder, or `embedded:smollm2-135m-infill`")
    backend: Backend = "vllm"
    dtype: DType = Field(
        "bfloat16",
        description="auto: bfloat16 where the machine that reads the recipe has a GPU or a processor for it, else float32",
    )
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
    remask_share: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.5, description="mean share of the response hidden at a step: anything up to twice that, uniformly; published: 0.5"
    )
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
    no_repeats: bool = Field(False, description="no token beside its like, where the steps allow: twins drawn in one step wait")
    max_target_tokens: Positive = Field(128, description="the response is cut to this many tokens")
    likelihood_samples: NonNegative = Field(
        0,
        description="samples (at least 2) of the bound on log p(x | y) that is stored with each candidate, given its own and "
        "another behavior's response, two forward passes each; 0: none. Torch backend only",
    )
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(32, description="rows of one forward pass")
    max_batched_tokens: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(8192, description="tokens of one vLLM forward pass")
    steps_per_call: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(
        4, description="denoising steps after which rows may leave and enter, at the latest"
    )
    compile: Annotated[bool, NO_EFFECT_ON_ROWS] = Field(
        False, description="compile the decoder's layers with torch.compile, backend torch on a GPU: more prompts a second"
    )

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
        if self.remask_share != SamplerConfig.model_fields["remask_share"].default and not self.remask_condition:
            raise ValueError("remask_share says how much remask_condition hides: set that to true, or leave the share out")
        if not self.tempered and self.temperature == 0:
            raise ValueError("tempered false says how a temperature above 0 acts: raise temperature or leave tempered out")
        if self.refine and self.steps <= min(self.prompt_tokens) and not parallel:
            raise ValueError(
                f"refine needs steps past those that fill a prompt: raise steps {self.steps} above {min(self.prompt_tokens)}"
            )
        if self.backend == "vllm" and self.compile:
            raise ValueError("compile is for backend torch, vLLM has its own: set backend to torch or compile to false")
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


# Fields of a request that have a setting of their own, or that the client cannot do without.
OWN_BODY_FIELDS = {
    "model": "target.model",
    "messages": "the prompt",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "the attack's temperature",
    "seed": "the recipe's seed",
    "chat_template_kwargs": "template_options",
    "stream": "one whole answer",
    "n": "one whole answer",
}


class EndpointConfig(Section):
    """A server that speaks OpenAI's chat completions."""

    url: Annotated[str, Outside.ADDRESS] = Field(
        pattern="^https?://", description="its base address, as in http://localhost:8000/v1"
    )
    api_key_env: Annotated[str | None, NO_EFFECT_ON_ROWS, Outside.VARIABLE] = Field(
        None, description="environment variable that holds the key; absent: no key is sent"
    )
    timeout: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT, NO_EFFECT_ON_ROWS] = Field(
        60.0, description="seconds that one try may take, from connecting to the answer's last byte; null: as long as it takes"
    )
    retries: Annotated[NonNegative, NO_EFFECT_ON_ROWS] = Field(
        3, description="further tries after a time-out, a lost connection, status 429 or 5xx"
    )
    concurrency: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(8, description="requests under way at the same time")
    longest_wait: Annotated[Annotated[float, Field(ge=0.0)] | None, NO_UPPER_LIMIT, NO_EFFECT_ON_ROWS] = Field(
        120.0,
        description="seconds that a server may ask to wait (Retry-After) before the next try; a row fails where it asks for "
        "more; null: however long it asks for",
    )
    token_limit: Annotated[Literal["max_tokens", "max_completion_tokens"], NO_EFFECT_ON_ROWS] = Field(
        "max_tokens", description="name under which the server takes the limit of an answer's tokens"
    )
    omit: tuple[Literal["temperature", "seed"], ...] = Field(
        (), description="fields that the server refuses: not sent, its own value counts"
    )
    extra_body: dict[str, JsonValue] = Field(
        {}, description="further fields of each request, such as {reasoning_effort: low} or {provider: {order: [name]}}"
    )

    @field_validator("extra_body")
    @classmethod
    def _no_own_field(cls, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in body:
            if name in OWN_BODY_FIELDS:
                raise ValueError(f"{name} is set by {OWN_BODY_FIELDS[name]}: leave it out of extra_body")
        return body

    @field_validator("api_key_env")
    @classmethod
    def _is_a_secret(cls, variable: str | None) -> str | None:
        """Whatever the variable is called, its value is blanked from here on in what this process writes."""
        if variable is not None:
            declare_secret(variable)
        return variable


# What `apply_chat_template` takes for itself, or finds in the tokenizer: none of it is for a recipe to set as an option.
RESERVED_OPTIONS = frozenset(
    {
        *("self", "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "kwargs", "raise_exception", "strftime_now"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    }
)

# What Llama 3's templates say where nobody tells them the date.
_UNDATED = date(2024, 7, 26)


class TemplateConfig(Section):
    """How a conversation becomes the text that a chat model reads."""

    system_prompt: str | None = Field(None, description="absent: whatever the chat template does by default")
    chat_template: str | None = Field(
        None,
        description="Jinja file, or the template itself, in place of the tokenizer's; needed where that has none (Vicuna)",
    )
    template_options: dict[str, JsonValue] = Field(
        {},
        description="further variables of the chat template, such as {enable_thinking: false}",
    )
    template_date: date = Field(
        _UNDATED,
        description="YYYY-MM-DD, what a template that asks for today's date is told; the default is that of Llama 3's templates",
    )

    @field_validator("chat_template")
    @classmethod
    def _read_template(cls, value: str | None, info: ValidationInfo) -> str | None:
        """The text of a file takes the place of its name, so that it counts and travels with the recipe."""
        if value is None or "{{" in value or "{%" in value:
            return value
        if info.context == STORED:
            raise ValueError("names a file, and a stored recipe holds the template itself: put it there, or name your own recipe")
        try:
            text = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot be read ({type(error).__name__}): give a Jinja file, or the template itself") from None
        if "{{" not in text and "{%" not in text:
            raise ValueError("holds no Jinja template: give a file that writes a conversation")
        return text

    @field_validator("template_options")
    @classmethod
    def _no_reserved_option(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in options:
            if name in RESERVED_OPTIONS:
                instead = {"strftime_now": "set template_date instead", "chat_template": "set chat_template instead"}
                raise ValueError(f"{name} is not for a recipe to set as an option: {instead.get(name, 'leave it out')}")
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of a template's variable: correct it")
        return options

    @field_validator("template_date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        """A number would be read as seconds since 1970."""
        if isinstance(value, int | float):
            raise ValueError("is a number, not a date: write YYYY-MM-DD")
        return value


class TargetConfig(TemplateConfig, EngineConfig):
    """A chat model: the one that is attacked and then fine-tuned, an attacker, or a judge's reader."""

    model: PathText = Field(
        description="hub id, folder, or `embedded:smollm2-135m-instruct`, of a whole model or of a LoRA adapter that names its "
        "base; for an endpoint its name for the model"
    )
    backend: Literal["vllm", "torch", "endpoint"] = "vllm"
    endpoint: EndpointConfig | None = Field(None, description="with `backend: endpoint`, and only then")
    template: Literal["chat", "none"] = Field("chat", description="none: prompts are sent as they are, as some judges need it")
    dtype: DType = Field("bfloat16", description="auto: see `sampler`")
    max_new_tokens: Positive = Field(256, description="tokens of one completion")
    max_model_len: Positive = Field(1024, description="tokens of prompt and completion together")
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = 64
    max_batched_tokens: Annotated[Positive, NO_EFFECT_ON_ROWS] = 4096
    kv_cache_gib: Annotated[float, Field(gt=0), NO_EFFECT_ON_ROWS] = Field(1.0, description="GiB, CPU backend of vLLM only")

    @model_validator(mode="after")
    def _one_backend(self) -> TargetConfig:
        if (self.backend == "endpoint") != (self.endpoint is not None):
            raise ValueError("`backend: endpoint` and the section `endpoint` go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _template_is_read(self) -> TargetConfig:
        if self.template == "none" and (self.chat_template or self.template_options):
            field = "chat_template" if self.chat_template else "template_options"
            raise ValueError(f"{field} is read only with `template: chat`: set that, or leave {field} out")
        if self.backend == "endpoint" and (self.chat_template or self.template_date != _UNDATED):
            field = "chat_template" if self.chat_template else "template_date"
            raise ValueError(f"{field} is up to the server with `backend: endpoint`: leave it out")
        return self


class EncoderConfig(Section):
    """The sentence encoder that says how near in meaning a prompt is to its goal; a backend in torch."""

    model: PathText = Field(
        "embedded:all-minilm-l6-v2",
        description="hub id or folder of the sentence-transformers kind, or `embedded:all-minilm-l6-v2`",
    )
    revision: Annotated[str, Field(min_length=1), NO_EFFECT_ON_ROWS] = Field(
        "main", description="branch, tag or commit of a hub id; a run keeps to the commit that main was when it began"
    )
    dtype: DType = "float32"
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = 64


class JudgeConfig(Section):
    """Who says whether a completion is harmful; `dat evaluate --list` tells what each needs."""

    name: JudgeName = "refusal-rules"
    threshold: Fraction = Field(0.5, description="score above which a completion counts as harmful")
    reader: TargetConfig | None = Field(None, description="the model that reads, for judges that are models")
    # What a prompt says is recorded in a run directory's weights.json and compared there: a file may move.
    prompt_path: Annotated[PathText | None, NO_EFFECT_ON_ROWS, Outside.FILE] = Field(
        None,
        description="file with the reader's prompt, or `public:NAME#KEY` for a text of a public JSON file; absent: the published "
        "prompt that the judge was trained on, or else the project's own",
    )
    prompt: Annotated[str | None, NO_EFFECT_ON_ROWS] = Field(None, description="the reader's prompt itself, instead of its file")
    max_tokens: Positive | None = Field(
        None,
        description="tokens that the reader may write; absent: what the judge's verdicts take (4 to 512). A reader that reasons "
        "before it answers needs more",
    )
    batch_size: Annotated[Positive | None, NO_EFFECT_ON_ROWS] = Field(
        None, description="answers of one call; absent: `target.batch_size` in an evaluation, a whole shard in generation"
    )

    @model_validator(mode="after")
    def _has_reader(self) -> JudgeConfig:
        if needs_reader(self.name) != (self.reader is not None):
            how = "loads its own model" if library_judge(self.name) else "reads by rules"
            raise ValueError(
                f"the judge {self.name} {how}: leave `reader` out"
                if self.reader
                else f"the judge {self.name} is a model: name it in `reader`"
            )
        if self.prompt is not None and self.prompt_path is not None:
            raise ValueError("prompt and prompt_path are two places for the same text: give one of them")
        if self.max_tokens is not None and (self.reader is None or self.name == "strongreject-finetuned"):
            raise ValueError(f"max_tokens limits what a reader writes; the judge {self.name} writes nothing: leave it out")
        return self

    @model_validator(mode="after")
    def _asks_as_the_library_does(self) -> JudgeConfig:
        if not library_judge(self.name):
            return self
        for field in ("prompt", "prompt_path", "max_tokens"):
            if getattr(self, field) is not None:
                raise ValueError(f"{field} is up to {LIBRARY} for the judge {self.name}: leave it out")
        if self.reader is not None and self.reader.backend != "endpoint":
            raise ValueError(f"the judge {self.name} asks a server: set reader.backend to endpoint and reader.endpoint.url")
        if self.reader is not None and self.reader.system_prompt is not None:
            raise ValueError(f"reader.system_prompt is up to {LIBRARY} for the judge {self.name}: leave it out")
        return self

    @property
    def asks_with_prompt(self) -> bool:
        """Whether its reader gets a prompt that `prompt` or its file may replace."""
        return self.reader is not None and self.name != "llama-guard" and not library_judge(self.name)
