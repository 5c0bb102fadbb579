from __future__ import annotations

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dat_ray.diffusion.canvas import SamplerSpec, build_canvas
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.sampler import InfillRow, StepBatch, TorchDenoiser
from tests.unit.diffusion.literal_law import literal_infill

MASK = 3
BANNED = (0, 1, 2, 3, *range(36, 48))
CHAT = SamplerSpec(MASK, 1, BANNED, "chat", before=(1, 4), between=(0, 2))
ANSWER = SamplerSpec(MASK, 0, BANNED, "answer", answer_prefix="\nA: ")

rows = st.lists(
    st.builds(
        InfillRow,
        target=st.text(alphabet="abcdefghij k.", min_size=1, max_size=14).filter(str.strip),
        prompt_tokens=st.integers(1, 9),
        seed=st.integers(0, 2**63 - 1),
    ),
    min_size=1,
    max_size=5,
)
laws = st.builds(
    Law,
    steps=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.7]),
    order=st.sampled_from(["low_confidence", "random"]),
    remask_condition=st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(rows=rows, law=laws, spec=st.sampled_from([CHAT, ANSWER]), batch_size=st.integers(1, 4))
def test_equals_the_law_written_out_literally(model, tokenizer, rows, law: Law, spec, batch_size: int) -> None:
    got = TorchDenoiser(model, tokenizer, spec, law, batch_size, chunk=5).infill(rows)
    for row, result in zip(rows, got, strict=True):
        canvas = build_canvas(tokenizer, spec, row.target, row.prompt_tokens)
        expected = literal_infill(
            model,
            list(canvas.ids),
            range(*canvas.prompt_span),
            range(*canvas.condition_span),
            seed=row.seed,
            steps=law.steps,
            tau=law.temperature,
            order=law.order,
            remask=law.remask_condition,
            banned=list(BANNED),
            mask=MASK,
            shift=spec.shift,
        )
        assert result.nfe == expected.nfe
        if expected.undecided:
            event("a tie that rounding decides")
            continue
        assert list(result.token_ids) == expected.tokens
        assert result.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_a_wholly_hidden_condition_leaves_ties_to_the_left_position(model, tokenizer) -> None:
    """There every mask sees the same canvas of nothing but masks: only the order of positions can decide."""
    # A short canvas is hidden whole in about one step of ten.
    rows = [InfillRow("a" * (1 + seed % 5), 3 + seed % 7, seed) for seed in range(120)]
    alone = [TorchDenoiser(model, tokenizer, ANSWER, Law(2), 1).infill([row])[0].token_ids for row in rows]
    for batch_size in (4, 60):
        together = TorchDenoiser(model, tokenizer, ANSWER, Law(2), batch_size).infill(rows)
        assert [result.token_ids for result in together] == alone


@settings(max_examples=12, deadline=None)
@given(rows=rows, law=laws, order=st.randoms(use_true_random=False))
def test_a_row_alone_equals_the_row_in_any_batch(model, tokenizer, rows, law: Law, order) -> None:
    sampler = TorchDenoiser(model, tokenizer, CHAT, law, batch_size=3)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    together = dict(zip(shuffled, sampler.infill([rows[i] for i in shuffled]), strict=True))
    for i, row in enumerate(rows):
        (alone,) = sampler.infill([row])
        assert alone.token_ids == together[i].token_ids
        assert alone.logprob == pytest.approx(together[i].logprob, abs=1e-4)


class Recorder(TorchDenoiser):
    """Keeps every step that it was asked for."""

    def forward(self, batch: StepBatch):
        self.seen = [*getattr(self, "seen", []), (batch, committed := super().forward(batch))]
        return committed


@settings(max_examples=12, deadline=None)
@given(rows=rows, law=laws)
def test_known_tokens_stay_bans_hold_and_every_mask_is_filled_in_its_budget(model, tokenizer, rows, law: Law) -> None:
    sampler = Recorder(model, tokenizer, CHAT, law, batch_size=2)
    results = sampler.infill(rows)
    for row, result in zip(rows, results, strict=True):
        assert len(result.token_ids) == row.prompt_tokens
        assert not set(result.token_ids) & set(BANNED)
        assert result.nfe == min(law.steps, row.prompt_tokens)
        assert result.logprob < 0
    for batch, committed in sampler.seen:
        places = set(zip(batch.rows.tolist(), batch.positions.tolist(), strict=True))
        assert set(zip(committed.rows.tolist(), committed.positions.tolist(), strict=True)) <= places
        assert torch.equal(torch.bincount(committed.rows, minlength=len(batch.quotas)), batch.quotas)
        # The template is always in view, and nothing but the condition is ever hidden.
        for ids, valid in zip(batch.ids.tolist(), batch.valid.tolist(), strict=True):
            assert tuple(ids[:2]) == CHAT.before
            visible = ids[: sum(valid)]
            assert any(tuple(visible[k : k + 2]) == CHAT.between for k in range(2, len(visible) - 1))


def distinct(model, tokenizer, law: Law, n: int = 12) -> int:
    sampler = TorchDenoiser(model, tokenizer, CHAT, law)
    return len({r.token_ids for r in sampler.infill([InfillRow("sure here is a plan", 8, seed) for seed in range(n)])})


def test_where_diversity_comes_from(model, tokenizer) -> None:
    assert distinct(model, tokenizer, Law(8, 0.0, remask_condition=False)) == 1
    assert distinct(model, tokenizer, Law(8, 0.0, remask_condition=True)) >= 6
    assert distinct(model, tokenizer, Law(8, 1.0, remask_condition=False)) >= 11


def test_seeds_reproduce(model, tokenizer) -> None:
    ask = [InfillRow("sure", 6, seed) for seed in (1, 2**63 - 1)]
    sampler = TorchDenoiser(model, tokenizer, CHAT, Law(6, 1.0))
    first = sampler.infill(ask)
    torch.manual_seed(99)
    assert sampler.infill(ask) == first
    assert first[0].token_ids != first[1].token_ids


def test_finished_rows_leave_and_waiting_ones_take_their_place(model, tokenizer) -> None:
    sampler = Recorder(model, tokenizer, CHAT, Law(9), batch_size=2)
    sampler.infill([InfillRow("sure", masks, 0) for masks in (2, 9, 2, 3)])
    assert [len(batch.quotas) for batch, _ in sampler.seen] == [2] * 7 + [1] * 2
    assert max(int(batch.rows.max()) for batch, _ in sampler.seen) == 1


def test_the_prompt_is_decoded(model, tokenizer) -> None:
    (result,) = TorchDenoiser(model, tokenizer, CHAT, Law(4)).infill([InfillRow("sure", 4, 0)])
    assert result.prompt == tokenizer.decode(list(result.token_ids), skip_special_tokens=True).strip()
    assert result.prompt


def test_no_rows_no_work(model, tokenizer) -> None:
    assert TorchDenoiser(model, tokenizer, CHAT, Law(4)).infill([]) == []
