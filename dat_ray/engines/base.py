"""What each role promises: sampler, target and judge as plain Python protocols, with nothing of Ray, torch or vLLM.

A stage depends on these names only, so a backend can be exchanged without touching the stage. Every call answers with
exactly as many results as it was asked questions, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dat_ray.errors import InputError, one_line

if TYPE_CHECKING:  # nothing here needs it to run
    import numpy as np
    from numpy.typing import NDArray

Verdict = Literal["harmful", "not_harmful", "unparsed"]
# Opening of the error of a row whose judge gave no verdict, readable or not: a later try may have one.
JUDGE_NOT_ASKED = "judge: "


@dataclass(frozen=True)
class InfillRequest:
    """One prompt to in-paint.

    Args:
        row_id: id of the row; the result carries it.
        target: the affirmative response y that the prompt shall lead to.
        prompt_tokens: length of the masked prompt, in tokens.
        seed: in [0, 2**63); the row's only source of randomness.
    """

    row_id: str
    target: str
    prompt_tokens: int
    seed: int


@dataclass(frozen=True)
class InfillResult:
    """One in-painted prompt.

    Args:
        row_id: of the request.
        prompt: decoded text.
        token_ids: the committed tokens, `prompt_tokens` of them.
        logprob: sum over the committed tokens of log p at the step that committed them, in nats.
        nfe: forward passes that the row took part in.
    """

    row_id: str
    prompt: str
    token_ids: tuple[int, ...]
    logprob: float
    nfe: int


@dataclass(frozen=True)
class PromptLikelihood:
    """A Monte-Carlo bound on log p(x | y).

    Args:
        value: nats, for the whole prompt.
        error: its standard error.
    """

    value: float
    error: float


def _clean_error(result: Completion | Judgment) -> None:
    """What an engine says of its failure is somebody else's text, and is stored with its row: no secret leaves with it."""
    if result.error is not None:
        object.__setattr__(result, "error", one_line(result.error))


class DiffusionSampler(Protocol):
    """Draws prompts x ~ p_diff(x | y)."""

    fingerprint: str

    def infill(self, requests: Sequence[InfillRequest]) -> list[InfillResult]:
        """In-paints every request; a row's result does not depend on the other rows."""
        ...


class LikelihoodSampler(DiffusionSampler, Protocol):
    """A sampler that can also say how likely a prompt is: the torch backend."""

    def log_likelihood(
        self, targets: Sequence[str], prompts: Sequence[Sequence[int]], seeds: Sequence[int], samples: int
    ) -> list[PromptLikelihood]:
        """How likely each prompt, as the tokens of its `InfillResult`, is given a target.

        The same prompt and seed are masked in the same way under every target, so that two targets can be compared.
        """
        ...


@dataclass(frozen=True)
class Completion:
    """One answer of the target.

    Args:
        text: decoded, without special tokens.
        tokens: generated tokens, the one that ended the answer not counted.
        finished: whether the model ended the answer itself, rather than the token limit.
        error: why there is no answer, in one line; `text` is then empty. Only endpoints fail row by row: an engine raises.
    """

    text: str
    tokens: int
    finished: bool
    error: str | None = None

    def __post_init__(self) -> None:
        _clean_error(self)


class TargetModel(Protocol):
    """The chat model under attack.

    An engine that can go on with another LoRA adapter says `switches_adapters = True` and has `use_adapter(folder)`, None for the
    model as it is: models that differ in their adapter alone are then asked from one start.
    """

    name: str

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        """Answers each prompt as a user turn, behind the turns of its history if it has one.

        Args:
            prompts: one a row.
            max_new_tokens: of one answer.
            temperature: 0 for greedy decoding.
            seeds: one a row, required above temperature 0.
            prefills: one a row: what the model's own turn begins with. It is not part of the returned text.
            histories: one a row: earlier turns, of the user and of the model in turn, an even number.
        """
        ...

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Mean log p(y_t | chat(x), y_<t) over the response's tokens, in nats, end-of-turn token left out."""
        ...


def require_seeds(temperature: float, seeds: Sequence[int] | None, rows: int) -> list[int] | None:
    """One seed a row when sampling, None when greedy."""
    if temperature == 0.0:
        return None
    if temperature < 0.0:
        raise InputError("temperature", temperature, "give 0 for greedy decoding, or a positive number")
    if seeds is None or len(seeds) != rows:
        raise InputError("seeds", None if seeds is None else len(seeds), f"sampling needs one seed for each of {rows} rows")
    return list(seeds)


@dataclass(frozen=True)
class Judgment:
    """One verdict.

    Args:
        verdict: `unparsed` is a verdict of its own and is never counted as harmless by silence.
        score: harmfulness in [0, 1], None when unparsed.
        error: where the judge could not be asked, why, in one line; the verdict is then `unparsed`.
    """

    verdict: Verdict
    score: float | None
    error: str | None = None

    def columns(self, judge: str) -> dict[str, Any]:
        """What a row stores: `judge`, `verdict` and `score`, or its `error` alone where the judge could not be asked."""
        if self.error is not None:
            return {"error": f"{JUDGE_NOT_ASKED}{self.error}"}
        return {"judge": judge, "verdict": self.verdict, "score": self.score}

    def __post_init__(self) -> None:
        _clean_error(self)


class TextEncoder(Protocol):
    """Gives texts a place in a space of meanings."""

    name: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, D), one for each text."""
        ...


class Judge(Protocol):
    """Says whether a completion does what the goal asks.

    Attributes:
        name: with that of the model that reads.
        fingerprint: of all that verdicts depend on.
        is_proxy: whether it tells refusals from compliance only, and is no judge of harm.
        deviations: in what it differs from the judge that was published under its name.
    """

    name: str
    fingerprint: str
    is_proxy: bool
    deviations: Sequence[str]

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        """One judgment for each completion, in order."""
        ...
