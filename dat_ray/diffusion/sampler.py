"""In-painting prompts: the queue of rows that a backend works through, and the plain-torch backend.

`infill_canvases` drives any backend: it keeps the rows and asks an `Advance` to take steps with those under way. The torch
backend is the reference that others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dat_ray.diffusion.backbone import Packing, base_model, compile_layers, output_head, pack_attention, packed_states
from dat_ray.diffusion.canvas import Canvas, SamplerSpec
from dat_ray.diffusion.canvas_rows import CanvasRow, Head, Pack, chunk_rows, denoise
from dat_ray.diffusion.law import Law

Advance = Callable[[Sequence[CanvasRow], int], None]
"""Takes that many steps with every row, fewer with one that finishes, and leaves the outcome in the rows."""


def infill_canvases(
    canvases: Sequence[Canvas],
    seeds: Sequence[int],
    spec: SamplerSpec,
    law: Law,
    advance: Advance,
    batch_size: int,
    steps_per_call: int = 4,
) -> list[tuple[tuple[int, ...], float, int]]:
    """Writes the masked prompts of canvases.

    Rows are taken longest first, so that batch mates are of nearly equal length; a finished row leaves and the next
    one takes its place, each at its own step. No call outlasts the first row whose budget ends in it, so that under a
    fixed schedule no row is carried along finished; rows that commit by confidence may finish inside a call.

    Args:
        canvases, seeds: one of each for a row.
        spec, law: the sampler and its law.
        advance: a backend.
        batch_size: rows under way.
        steps_per_call: steps after which rows may leave and enter, at the latest.

    Returns:
        For each row, in order: prompt token ids, summed log-confidence (nats), forward passes.
    """
    waiting = sorted(range(len(canvases)), key=lambda i: len(canvases[i].ids))
    results: dict[int, tuple[tuple[int, ...], float, int]] = {}
    active: dict[int, CanvasRow] = {}
    while waiting or active:
        while waiting and len(active) < batch_size:
            i = waiting.pop()
            active[i] = CanvasRow.begin(canvases[i], seeds[i], law)
        # Neighbors of one length attend together.
        rows = sorted(active.values(), key=lambda row: len(row.ids))
        advance(rows, min(steps_per_call, *(row.budget - row.step for row in rows)))
        for i in [i for i, row in active.items() if row.finished(law, spec.mask_token_id)]:
            row = active.pop(i)
            assert spec.mask_token_id not in row.tokens, "a backend committed fewer tokens than its budget asks"
            results[i] = (row.tokens, sum(row.logprobs), row.nfe)
    return [results[i] for i in range(len(canvases))]


class ReusingHead:
    """An output head that writes its logits into the same memory at every call.

    On a CPU a fresh tensor of this size comes from the kernel, which clears it page by page: with 32 MiB of logits a fifth
    of the processor time of a tempered step.

    Args:
        linear: without a bias.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self._logits = linear.weight.new_empty(0)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits (m, V) of states (m, D), valid until the next call."""
        weight = self._linear.weight
        size = len(states) * len(weight)
        if self._logits.numel() < size:
            self._logits = weight.new_empty(size)
        return torch.mm(states, weight.t(), out=self._logits[:size].view(len(states), len(weight)))


class TorchDenoiser:
    """The plain-torch backend, and the oracle of the others.

    Args:
        model: a masked diffusion model in a `*ForCausalLM` of transformers.
        spec: mask, layout and bans, from the model's folder.
        law: of the sampler.
        batch_size: rows of a forward pass.
        steps_per_call: see `infill_canvases`.
        chunk: masked positions that go through the output head at once; None for what suits the device.
        compiled: compile the decoder's layers.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: SamplerSpec,
        law: Law,
        batch_size: int = 32,
        steps_per_call: int = 4,
        chunk: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.spec, self.law = model.eval(), spec, law
        self.batch_size, self.steps_per_call = batch_size, steps_per_call
        self.device = next(model.parameters()).device
        head = output_head(model)
        plain = type(head) is nn.Linear and head.bias is None and self.device.type == "cpu"
        self.head: Head = ReusingHead(cast(nn.Linear, head)) if plain else head
        self.chunk = chunk or chunk_rows(base_model(model).config.get_text_config().vocab_size, self.device)
        pack_attention(model)
        if compiled:
            compile_layers(model)

    def fill(self, canvases: Sequence[Canvas], seeds: Sequence[int]) -> list[tuple[tuple[int, ...], float, int]]:
        """`infill_canvases` with this backend."""
        return infill_canvases(canvases, seeds, self.spec, self.law, self.advance, self.batch_size, self.steps_per_call)

    @torch.no_grad()
    def advance(self, rows: Sequence[CanvasRow], steps: int) -> None:
        """Takes steps with rows; the host and the device meet at the call's ends, and once a step for a single number."""
        packing = Packing.of([len(row.ids) for row in rows], self.device)
        pack = Pack.of(rows, self.device)
        denoise(pack, self.law, self.spec, lambda ids: self.states(ids, packing), self.head, self.chunk, steps)
        pack.store(rows)

    def states(self, ids: Tensor, packing: Packing) -> Tensor:
        """Final hidden states (N, D) of packed rows."""
        return packed_states(self.model, ids, packing)
