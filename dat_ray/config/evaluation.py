"""The part of a recipe about evaluation: the attacks and what each needs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dat_ray.config.data import Comparable
from dat_ray.config.judge_names import RULES
from dat_ray.config.models import JudgeConfig, SamplerConfig, TargetConfig
from dat_ray.config.section import (
    NO_EFFECT_ON_ROWS,
    NO_UPPER_LIMIT,
    Fraction,
    NonNegative,
    Outside,
    PathText,
    Positive,
    Section,
)
from dat_ray.config.training import AttackConfig

# Of the attack that a file of ready prompts is, before the file's own name.
READY_PREFIX = "prompts_"
# An attack of this package, or somebody else's class. Which there are is known where they are: `dat_ray.evaluation.registry`.
_ATTACK = re.compile(r"[a-z][a-z0-9_]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _attack(text: str) -> str:
    if not _ATTACK.fullmatch(text):
        raise ValueError(f"{text!r} names no attack: write a name of `dat evaluate --list`, or package.module:Class")
    return text


AttackName = Annotated[str, AfterValidator(_attack)]


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


class CrescendoConfig(Section):
    """Crescendo (arXiv 2404.01833): the attacker leads a conversation. Published: 10 turns, a refused one edited 10 times."""

    rounds: Positive = Field(10, description="turns of a conversation")
    backtracks: NonNegative = Field(10, description="refused or unreadable turns of a conversation that are written anew")
    streams: Positive = Field(1, description="conversations about each behavior, which end where one of them has broken it")
    max_new_tokens: Positive = Field(500, description="tokens of one answer of the attacker")


class GcgConfig(Section):
    """GCG (arXiv 2307.15043): a suffix found by gradients and exchanges of tokens. DAT: 250 steps, width 512, top-k 256."""

    steps: Positive = 250
    search_width: Positive = Field(512, description="candidate suffixes of one step")
    top_k: Positive = Field(256, description="tokens considered at each position")
    n_replace: Positive = Field(1, description="tokens exchanged in a candidate")
    suffix: str = Field(" ".join(["x"] * 20), description="where the search starts")
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(64, description="candidates of one forward pass")
    attempts: Positive = Field(
        1, description="suffixes that the model is asked with: evenly spaced in the search, its last among them"
    )


class BeastConfig(Section):
    """BEAST (arXiv 2402.15570): a suffix by beam search in the target's own distribution. Published: 40 tokens, 15 and 15."""

    suffix_tokens: Positive = Field(40, description="longest suffix; a step of the search each")
    beams: Positive = Field(15, description="suffixes that go on after a step")
    branches: Positive = Field(15, description="tokens drawn behind each of them")
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = Field(64, description="candidates of one forward pass")
    attempts: Positive = Field(1, description="suffixes that the model is asked with, as for gcg")


class PgdConfig(Section):
    """PGD on relaxed tokens with discretization (arXiv 2402.09154). Values of its published program, suffix as long as GCG's."""

    steps: Positive = 5000
    suffix_tokens: Positive = 20
    rate: Annotated[float, Field(gt=0.0)] = Field(0.11, description="Adam's learning rate, at first")
    peak_rate: Annotated[float, Field(gt=0.0)] = Field(0.325, description="where each period of the rate ends")
    constant_steps: NonNegative = Field(100, description="steps before the first period")
    period: Positive = Field(60, description="steps of a period")
    entropy: Fraction = Field(0.4, description="strength of the entropy projection; 1 allows single tokens only")
    anneal_steps: Positive = Field(250, description="steps over which it grows from 0")
    gradient_norm: Annotated[Annotated[float, Field(gt=0.0)] | None, NO_UPPER_LIMIT] = Field(
        20.0, description="longest gradient of a position; null: of any length"
    )
    patience: Positive = Field(100, description="steps without a better suffix before the search goes back to its best")
    attempts: Positive = Field(1, description="suffixes that the model is asked with, as for gcg")


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


class PromptColumns(Section):
    """Names of the columns of a file of prompts, where its own do not tell."""

    prompt: str | None = Field(None, description="what the model is asked")
    goal: str | None = Field(None, description="the request that the prompt serves")
    id: str | None = Field(None, description="the behavior's id")
    completion: str | None = Field(None, description="a model's answer to the prompt")
    variant: str | None = Field(None, description="what tells prompts of one behavior apart in the results, such as a language")


class PromptFile(Section):
    """A file of ready prompts: one attack, called `prompts_NAME`."""

    path: Annotated[PathText, Outside.FILE] = Field(
        description="JailbreakBench artifact, HarmBench test cases or completions, artifacts of the past-tense attack, or a "
        "table (CSV, JSONL, JSON, parquet, a folder of such, `hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`) with columns goal "
        "or id, and prompt"
    )
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,48}$")] | None = Field(
        None, description="NAME of the attack: lower-case letters, digits and underscores; absent: the file's own name"
    )
    columns: PromptColumns = PromptColumns()
    where: Comparable = Field({}, description="only rows whose column has this value, as in {attack: pair}")
    variants: tuple[str, ...] = Field((), description="only these variants, such as languages; empty: all")
    samples: Positive | None = Field(
        None, description="prompts of each behavior and variant, drawn by the recipe's seed; absent: all"
    )
    in_gap: bool = Field(
        True, description="count its prompts as written ones in `evaluation.gap`; false where a sampler drew them"
    )

    @property
    def attack(self) -> str:
        """Name of the attack, the same however many files there are: attempts are known by it."""
        last = self.path.rstrip("/").rpartition("/")[2].lower()
        bare = re.sub(r"\.(csv|tsv|jsonl|ndjson|json|parquet|txt)(\.(gz|bz2|xz))?$", "", last)
        return f"{READY_PREFIX}{self.name or re.sub('[^a-z0-9]+', '_', bare).strip('_')[:48] or 'file'}"


class UtilityConfig(Section):
    """Benchmarks by lm-eval (extra `utility`)."""

    tasks: tuple[str, ...] = Field((), description="names of lm-eval tasks, as in mmlu, arc_easy, arc_challenge")
    include_path: Annotated[PathText | None, Outside.CODE] = Field(
        None, description="folder with further task files (YAML), which may name code"
    )
    limit: Positive | None = Field(
        None, description="first N questions of each task only; of a group of tasks, as mmlu with 57, of each member"
    )
    num_fewshot: NonNegative | None = Field(None, description="examples before each question; absent: the task's own number")
    batch_size: Annotated[Positive, NO_EFFECT_ON_ROWS] = 8


class GapConfig(Section):
    """The distribution gap: how likely harmful responses are on training prompts, on fresh ones, and on written ones."""

    bound: Annotated[float, Field(gt=0.0)] = Field(
        10.0, description="nats a token, the M of the theorem: a log-likelihood outside [-M, M] counts as the nearer end"
    )
    behaviors: Positive | None = Field(
        None, description="training behaviors, and as many held-out ones, drawn by their ids; absent: all"
    )
    prompts: Positive | None = Field(
        4, description="prompts of each behavior and set that are scored, drawn by their ids; absent: all"
    )
    seed: NonNegative = Field(
        0, description="of the fresh prompts and of what is drawn by ids; hashed, so that it is no run's own"
    )


class EvaluationConfig(Section):
    """Attacks on the models, and what else is measured of them. Defaults of the attacks are the published settings."""

    attacks: Annotated[tuple[AttackName, ...], Field(min_length=1), Outside.CLASS] = Field(
        ("direct", "inpainting"),
        description="names of `dat evaluate --list`, or package.module:Class for an attack of your own, which Python can import",
    )
    inpainting_samples: Positive = Field(16, description="prompts for each held-out behavior, drawn with fresh seeds")
    harmless_inpainting_samples: Positive = Field(2, description="the same for each request of behaviors.harmless_heldout")
    min_goal_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = Field(
        None,
        description="cosine of prompt and goal under `encoder` below which an in-painted prompt is off the goal: no attack, so "
        "that it cannot break a behavior, and counted apart; absent: every prompt counts",
    )
    direct: DirectConfig = DirectConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()
    tense: TenseConfig = TenseConfig()
    translation: TranslationConfig = TranslationConfig()
    pair: PairConfig = PairConfig()
    crescendo: CrescendoConfig = CrescendoConfig()
    gcg: GcgConfig = GcgConfig()
    beast: BeastConfig = BeastConfig()
    pgd: PgdConfig = PgdConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    templates_path: Annotated[PathText | None, Outside.FILE] = Field(
        None,
        description="CSV, JSONL or JSON file with a column `template` that holds {goal}, or public:gptfuzzer/GPTFuzzer.csv",
    )
    prompts: tuple[PromptFile, ...] = Field((), description="files of ready prompts for the attack `prompts`, an attack each")
    attacker: TargetConfig | None = Field(None, description="writes the prompts of past_tense, future_tense, translation, pair")
    heldout_sampler: SamplerConfig | None = Field(
        None, description="draws the prompts of inpainting_heldout; not the training one"
    )
    second_judge: JudgeConfig | None = Field(None, description="scores the same completions; the disagreement is shown")
    refusal_judge: JudgeConfig = Field(JudgeConfig(), description="reads the answers to harmless look-alikes")
    utility: UtilityConfig = UtilityConfig()
    gap: GapConfig | None = Field(
        None,
        description="measure the distribution gap, plainly and under `training.attack`: draws as many candidates as the training "
        "did, for its behaviors and the held-out ones; absent: not measured",
    )
    kl_rows: NonNegative = Field(0, description="rows on which the drift KL(base || model) is measured; 0: not measured")
    kl_data: Literal["retain", "look_alikes"] = Field(
        "retain",
        description="whose responses these are: retain: rows of the retain set, trained on where training had one; look_alikes: "
        "what the base model answered to the harmless look-alikes of behaviors.over_refusal, refusals left out",
    )
    max_new_tokens: Positive = 256
    # Counts: an evaluation goes by the names of its shards.
    rows_per_shard: Positive | None = Field(None, description="attempts of one shard; absent: `generation.rows_per_block`")
    max_error_rate: Annotated[Fraction | None, NO_EFFECT_ON_ROWS] = Field(
        None, description="share of failed rows past which the stage stops; absent: `generation.max_error_rate`"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    bootstrap: Positive = Field(2000, description="resamples of behaviors for intervals of pooled rates")

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationConfig:
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError("attacks names one attack twice: name each once")
        if not self.refusal_judge.name.startswith((RULES, "xstest", "judgezoo:xstest")):
            raise ValueError(f"refusal_judge {self.refusal_judge.name} judges harm, not refusals: use refusal-rules or xstest")
        name, times = Counter(one.attack for one in self.prompts).most_common(1)[0] if self.prompts else ("", 0)
        if times > 1:
            raise ValueError(f"prompts has {times} files that would be the attack {name}: give each a name of its own")
        return self
