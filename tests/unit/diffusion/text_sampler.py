"""The torch sampler between texts: from a response to a written prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dat_ray.diffusion.canvas import build_canvas, decode_prompt
from dat_ray.diffusion.sampler import TorchDenoiser


@dataclass(frozen=True)
class InfillRow:
    """What is asked for: a prompt of `prompt_tokens` tokens for a target response.

    Attributes:
        target: the response.
        prompt_tokens: masks, K.
        seed: in [0, 2**63); every random number of the row comes from it.
    """

    target: str
    prompt_tokens: int
    seed: int


@dataclass(frozen=True)
class Infilled:
    """A written prompt.

    Attributes:
        prompt: its text, without special tokens or outer space.
        token_ids: the K tokens.
        logprob: sum of the log-confidences at which they were committed, nats.
        nfe: forward passes that this row took part in.
    """

    prompt: str
    token_ids: tuple[int, ...]
    logprob: float
    nfe: int


class TextSampler(TorchDenoiser):
    """`TorchDenoiser` with a tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self.tokenizer = tokenizer

    def infill(self, rows: Sequence[InfillRow]) -> list[Infilled]:
        """Writes a prompt for each row."""
        canvases = [build_canvas(self.tokenizer, self.spec, row.target, row.prompt_tokens) for row in rows]
        done = self.fill(canvases, [row.seed for row in rows])
        return [Infilled(decode_prompt(self.tokenizer, ids), ids, logprob, nfe) for ids, logprob, nfe in done]
