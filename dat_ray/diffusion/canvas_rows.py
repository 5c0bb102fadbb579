"""Rows under way: what a denoising step reads and writes, packed one row after the other, without padding.

Between calls a row lives on the host (`CanvasRow`), where it can wait, travel to an engine, or leave. Inside a call the rows
lie in tensors on the device (`Pack`), and no step asks for anything of a single row; the host sees them when the call
ends. A call takes several steps.

Shapes: B rows, N tokens of all rows, M masked prompt positions of all rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.law import Law, Proposal, StepKeys, choose, hide_condition, propose, to_refine

# Bytes of one chunk of logits. Each chunk reads the head's weights once; past this a CPU loses more to its caches than it
# gains by fewer readings (measured between 16 and 128 MiB). A GPU wants large products.
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}

Forward = Callable[[Tensor], Tensor]
"""Maps the N ids that the model sees to its (N, D) final hidden states."""
Head = Callable[[Tensor], Tensor]
"""Maps (m, D) states to (m, V) logits, in a tensor that the caller may overwrite, and that the next call may too."""


@dataclass
class CanvasRow:
    """A row on the host.

    Attributes:
        ids: L tokens, MASK where the prompt is not written.
        prompt, condition: half-open spans of positions.
        seed: of every random number of the row.
        budget: steps that it may take.
        step: steps taken.
        deadline: step by which its present masks are filled.
        nfe: forward passes that it took part in.
        logprobs: log-confidence at which each prompt token was committed, nats; 0 where it is MASK.
    """

    ids: list[int]
    prompt: tuple[int, int]
    condition: tuple[int, int]
    seed: int
    budget: int
    step: int
    deadline: int
    nfe: int
    logprobs: list[float]

    @classmethod
    def begin(cls, canvas: Canvas, seed: int, law: Law) -> CanvasRow:
        """A row whose prompt is all masks."""
        masks = canvas.prompt_span[1] - canvas.prompt_span[0]
        deadline = min(law.steps, masks)
        return cls(
            list(canvas.ids), canvas.prompt_span, canvas.condition_span, seed, law.budget(masks), 0, deadline, 0, [0.0] * masks
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt."""
        return tuple(self.ids[slice(*self.prompt)])

    def finished(self, law: Law, mask: int) -> bool:
        """Whether no step is left to take: a row that refines takes its whole budget, another one is done when full."""
        return self.step == self.budget or (law.refine is None and mask not in self.tokens)


@dataclass
class Pack:
    """Rows on the device, in tensors that the steps change in place.

    Attributes:
        ids: (N,) int64, as `Row.ids`.
        rows, positions: (N,) int64, of each token.
        prompt, condition: (N,) bool.
        logprobs: (N,) float32, 0 outside prompts.
        lengths, seeds, budgets, steps, deadlines, nfe: (B,) int64.
    """

    ids: Tensor
    rows: Tensor
    positions: Tensor
    prompt: Tensor
    condition: Tensor
    logprobs: Tensor
    lengths: Tensor
    seeds: Tensor
    budgets: Tensor
    steps: Tensor
    deadlines: Tensor
    nfe: Tensor

    @classmethod
    def of(cls, rows: Sequence[CanvasRow], device: torch.device | str) -> Pack:
        """Packs rows in their order."""

        def column(values: Sequence[int] | Sequence[tuple[int, int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64)

        lengths = column([len(row.ids) for row in rows])
        owner = torch.arange(len(rows)).repeat_interleave(lengths)
        positions = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]

        def inside(spans: Sequence[tuple[int, int]]) -> Tensor:
            bounds = column(spans)[owner]
            return (positions >= bounds[:, 0]) & (positions < bounds[:, 1])

        prompt = inside([row.prompt for row in rows])
        logprobs = torch.zeros(len(owner))
        logprobs[prompt] = torch.tensor([x for row in rows for x in row.logprobs])
        pack = cls(
            ids=column([token for row in rows for token in row.ids]),
            rows=owner,
            positions=positions,
            prompt=prompt,
            condition=inside([row.condition for row in rows]),
            logprobs=logprobs,
            lengths=lengths,
            seeds=column([row.seed for row in rows]),
            budgets=column([row.budget for row in rows]),
            steps=column([row.step for row in rows]),
            deadlines=column([row.deadline for row in rows]),
            nfe=column([row.nfe for row in rows]),
        )
        return cls(*(getattr(pack, name).to(device) for name in cls.__dataclass_fields__))

    def store(self, rows: Sequence[CanvasRow]) -> None:
        """Writes back what steps change into the rows that `of` took."""
        ids, logprobs = self.ids[self.prompt].tolist(), self.logprobs[self.prompt].tolist()
        steps, deadlines, nfe = self.steps.tolist(), self.deadlines.tolist(), self.nfe.tolist()
        start = 0
        for b, row in enumerate(rows):
            row.step, row.deadline, row.nfe = steps[b], deadlines[b], nfe[b]
            lo, hi = row.prompt
            stop = start + hi - lo
            row.ids[lo:hi], row.logprobs = ids[start:stop], logprobs[start:stop]
            start = stop

    @property
    def keys(self) -> StepKeys:
        """Of this step's random numbers, for each row."""
        return StepKeys(self.seeds, self.steps)

    def count(self, where: Tensor) -> Tensor:
        """How many tokens of each row are marked: (B,) int64."""
        return torch.zeros_like(self.lengths).index_add_(0, self.rows, where.long())


def begin_step(pack: Pack, law: Law, mask: int) -> Tensor:
    """What the model sees at this step; before it, full rows that refine lose some of their tokens.

    Returns:
        (N,) int64, the canvases with a part of the condition hidden.
    """
    if law.refine:
        full = pack.count(pack.prompt & (pack.ids == mask)) == 0
        left = (pack.budgets - pack.steps).clamp(max=law.refine_tokens)
        counts = torch.minimum(left, pack.count(pack.prompt)) * full
        at = pack.prompt.nonzero()[:, 0]
        rows, positions = pack.rows[at], pack.positions[at]
        again = to_refine(pack.logprobs[at], rows, positions, counts, pack.keys, law)
        pack.ids.index_put_((at,), pack.ids[at].masked_fill(again, mask))
        pack.logprobs.index_put_((at,), pack.logprobs[at].masked_fill(again, 0.0))
        pack.deadlines = torch.where(counts > 0, pack.steps + counts, pack.deadlines)
    if not law.remask_condition:
        return pack.ids.clone()
    most = (2 * law.remask_share * pack.lengths).round().long().clamp(min=1)
    return hide_condition(pack.ids, pack.condition, pack.rows, pack.positions, most, pack.keys, mask)


@torch.no_grad()
def denoise(pack: Pack, law: Law, spec: SamplerSpec, forward: Forward, head: Head, chunk: int, steps: int) -> None:
    """Takes steps with every row of a pack; a row that is finished stays as it is.

    Args:
        pack: changed in place.
        law, spec: the sampler's.
        forward: the model without its head.
        head: maps (m, D) states to (m, V) logits. It sees masked prompt positions only.
        chunk: masks of one call of `head`, see `chunk_rows`; no result depends on it but for rounding.
        steps: how many; fewer when no row has any left.
    """
    banned = torch.tensor(sorted(spec.banned_token_ids), dtype=torch.int64, device=pack.ids.device)
    for _ in range(steps):
        seen = begin_step(pack, law, spec.mask_token_id)
        masked = pack.prompt & (pack.ids == spec.mask_token_id)
        at = masked.nonzero()[:, 0]
        if not len(at):
            return
        states = [forward(seen)[at - spec.shift]]
        if law.guidance > 0:
            unconditional = pack.ids.masked_fill(pack.condition, spec.mask_token_id)
            states.append(forward(unconditional)[at - spec.shift])
        barred = banned, _neighbors(pack, at, spec.mask_token_id) if law.no_repeats else None
        proposal = _propose(pack, at, states, head, chunk, law, barred)
        masks = pack.count(masked)
        # The even share of what is left: the published schedule, remainder first.
        least = -(-masks // (pack.deadlines - pack.steps).clamp(min=1))
        chosen = choose(pack.rows[at], pack.positions[at], proposal, least, pack.keys, law)
        pack.ids[at] = torch.where(chosen, proposal.tokens, spec.mask_token_id)
        pack.logprobs[at] = torch.where(chosen, proposal.logprobs, 0.0)
        pack.steps += masks > 0
        pack.nfe += law.passes * (masks > 0)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many masks go through the output head at once."""
    return max(1, CHUNK_BYTES["cuda" if device.type == "cuda" else "cpu"] // (4 * vocabulary))


def _neighbors(pack: Pack, at: Tensor, mask: int) -> Tensor:
    """(M, 2): the prompt tokens before and after the given ones; MASK where there is none, or none is written."""
    sides = []
    for step in (-1, 1):
        beside = (at + step).clamp(0, len(pack.ids) - 1)
        inside = pack.prompt[beside] & (pack.rows[beside] == pack.rows[at]) & (beside == at + step)
        sides.append(torch.where(inside, pack.ids[beside], mask))
    return torch.stack(sides, dim=1)


def _propose(
    pack: Pack, at: Tensor, states: Sequence[Tensor], head: Head, chunk: int, law: Law, barred: tuple[Tensor, Tensor | None]
) -> Proposal:
    """`propose` for the masks at the given tokens, a chunk of them at a time, so that (M, V) is never held.

    Args:
        barred: its `banned`, and its `neighbors` of all these masks.
    """
    parts = []
    banned, neighbors = barred
    for lo in range(0, len(at), chunk):
        part = slice(lo, lo + chunk)
        logits = head(torch.cat([each[part] for each in states])).float()
        if law.guidance > 0:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional.lerp_(conditional, law.guidance + 1)
        beside = None if neighbors is None else neighbors[part]
        parts.append(propose(logits, law, pack.keys.at(pack.rows[at[part]]), pack.positions[at[part]], banned, beside))
    tokens, logprobs = torch.cat([p.tokens for p in parts]), torch.cat([p.logprobs for p in parts])
    if law.entropy_bound is None:
        return Proposal(tokens, logprobs)
    return Proposal(tokens, logprobs, torch.cat([p.entropies for p in parts if p.entropies is not None]))
