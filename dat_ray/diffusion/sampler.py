"""In-painting prompts: the loop over denoising steps, and its plain-torch backend.

`infill_canvases` drives any backend: it keeps the rows, hides parts of their conditions, and asks a `Forward` for the
tokens to commit. The torch backend is the reference that others are compared with.

Shapes: B rows, T canvas positions, M masked prompt positions of all rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dat_ray.diffusion.backbone import hidden_states, output_head, pad_rows
from dat_ray.diffusion.canvas import Canvas, SamplerSpec, build_canvas, decode_prompt
from dat_ray.diffusion.law import Committed, Law, denoise_step, hide_condition, transfer_schedule


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


@dataclass(frozen=True)
class StepBatch:
    """One denoising step of several rows, as a backend sees it.

    Attributes:
        ids: (B, T) int64, canvases with a part of the condition hidden, padded on the right.
        valid: (B, T) bool, False at padding.
        rows, positions: (M,) int64, masked prompt positions, ordered by row, then by position.
        seeds, steps, quotas: (B,) int64: seed, step from 0, tokens to commit.
    """

    ids: Tensor
    valid: Tensor
    rows: Tensor
    positions: Tensor
    seeds: Tensor
    steps: Tensor
    quotas: Tensor


Forward = Callable[[StepBatch], Committed]


@dataclass
class _Active:
    """A row on its way."""

    index: int
    canvas: Canvas
    seed: int
    schedule: list[int]
    ids: list[int]
    step: int = 0
    logprobs: list[float] = field(default_factory=list)


def infill_canvases(
    canvases: Sequence[Canvas],
    seeds: Sequence[int],
    spec: SamplerSpec,
    law: Law,
    forward: Forward,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[tuple[tuple[int, ...], float, int]]:
    """Writes the masked prompts of canvases.

    Rows are taken longest first, so that batch mates are of nearly equal length; a finished row leaves and the next
    one takes its place, each at its own step.

    Args:
        canvases, seeds: one of each for a row.
        spec, law: the sampler and its law.
        forward: a backend's pass over a `StepBatch`.
        batch_size: rows of a step.
        device: where the step's tensors are made.

    Returns:
        For each row, in order: prompt token ids, summed log-confidence (nats), forward passes.
    """
    waiting = sorted(range(len(canvases)), key=lambda i: len(canvases[i].ids))
    results: dict[int, tuple[tuple[int, ...], float, int]] = {}
    active: list[_Active] = []
    while waiting or active:
        while waiting and len(active) < batch_size:
            i = waiting.pop()
            lo, hi = canvases[i].prompt_span
            active.append(_Active(i, canvases[i], seeds[i], transfer_schedule(hi - lo, law.steps), list(canvases[i].ids)))
        committed = forward(_step_batch(active, spec, law, device))
        changes = zip(
            *(x.tolist() for x in (committed.rows, committed.positions, committed.tokens, committed.logprobs)), strict=True
        )
        for row, position, token, logprob in changes:
            active[row].ids[position] = token
            active[row].logprobs.append(logprob)
        for row in active:
            row.step += 1
            if row.step == len(row.schedule):
                prompt = tuple(row.ids[slice(*row.canvas.prompt_span)])
                assert spec.mask_token_id not in prompt, "a backend committed fewer tokens than its quota"
                results[row.index] = (prompt, sum(row.logprobs), row.step)
        active = [row for row in active if row.step < len(row.schedule)]
    return [results[i] for i in range(len(canvases))]


def _step_batch(active: Sequence[_Active], spec: SamplerSpec, law: Law, device: torch.device | str) -> StepBatch:
    ids, valid = pad_rows([row.ids for row in active], spec.mask_token_id, device)
    as_long = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
    place = torch.arange(ids.shape[1], device=device)[None]
    seeds, steps = as_long([row.seed for row in active]), as_long([row.step for row in active])
    prompt = as_long([row.canvas.prompt_span for row in active])
    masked = (place >= prompt[:, :1]) & (place < prompt[:, 1:]) & (ids == spec.mask_token_id)
    rows, positions = masked.nonzero(as_tuple=True)
    if law.remask_condition:
        span = as_long([row.canvas.condition_span for row in active])
        condition = (place >= span[:, :1]) & (place < span[:, 1:])
        ids = hide_condition(ids, valid, condition, seeds, steps, spec.mask_token_id)
    return StepBatch(ids, valid, rows, positions, seeds, steps, as_long([row.schedule[row.step] for row in active]))


class TorchDenoiser:
    """The plain-torch backend, and the oracle of the others.

    Args:
        model: a masked diffusion model in a `*ForCausalLM` of transformers (Llama or Qwen layout).
        tokenizer: of the model.
        spec: mask, layout and bans, from the model's folder.
        law: steps, temperature, order, re-masking.
        batch_size: rows of a forward pass.
        max_target_tokens: responses are cut to this many tokens.
        chunk: masked positions that go through the output head at once.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        spec: SamplerSpec,
        law: Law,
        batch_size: int = 32,
        max_target_tokens: int = 128,
        chunk: int = 128,
    ) -> None:
        self.model, self.tokenizer, self.spec, self.law = model.eval(), tokenizer, spec, law
        self.batch_size, self.max_target_tokens, self.chunk = batch_size, max_target_tokens, chunk
        self.device = next(model.parameters()).device

    def infill(self, rows: Sequence[InfillRow]) -> list[Infilled]:
        """Writes a prompt for each row; a row's result depends on nothing but the row.

        Raises:
            InputError: a row without text in its target, or without masks.
        """
        canvases = [
            build_canvas(self.tokenizer, self.spec, row.target, row.prompt_tokens, self.max_target_tokens) for row in rows
        ]
        seeds = [row.seed for row in rows]
        done = infill_canvases(canvases, seeds, self.spec, self.law, self.forward, self.batch_size, self.device)
        return [Infilled(decode_prompt(self.tokenizer, ids), ids, logprob, nfe) for ids, logprob, nfe in done]

    @torch.no_grad()
    def forward(self, batch: StepBatch) -> Committed:
        """One denoising step; the output head sees masked prompt positions only."""
        states = hidden_states(self.model, batch.ids, batch.valid)[batch.rows, batch.positions - self.spec.shift]
        return denoise_step(
            states,
            output_head(self.model),
            batch.rows,
            batch.positions,
            batch.seeds,
            batch.steps,
            batch.quotas,
            self.law,
            self.spec.banned_token_ids,
            self.chunk,
        )
