from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dat_ray.diffusion.canvas import SamplerSpec, build_canvas
from dat_ray.diffusion.canvas_rows import Pack
from dat_ray.diffusion.law import Law
from dat_ray.diffusion.sampler import ReusingHead
from tests.unit.diffusion.literal_law import literal_infill
from tests.unit.diffusion.text_sampler import InfillRow, TextSampler

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
    no_repeats=st.booleans(),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "untempered": {"temperature": 0.3, "tempered": False},
    "a fifth of the response hidden": {"remask_share": 0.2, "temperature": 0.7},
    "one token of it hidden": {"remask_share": 0.001},
    "guidance": {"guidance": 1.5},
    "guidance, tempered": {"guidance": 0.5, "temperature": 0.7, "order": "random"},
    "threshold": {"threshold": 0.1},
    "threshold, tempered": {"threshold": 0.05, "temperature": 0.7, "guidance": 1.0},
    "entropy bound": {"entropy_bound": 6.0},
    "refine random": {"refine": "random", "refine_tokens": 3},
    "refine the least confident": {"refine": "low_confidence", "refine_tokens": 2, "temperature": 0.7},
    "refine, in parallel": {"refine": "low_confidence", "threshold": 0.3},
    "no repeats": {"no_repeats": True, "steps": 3},
    "no repeats, tempered": {"no_repeats": True, "steps": 3, "temperature": 0.7, "guidance": 1.0},
    "no repeats, in random order": {"no_repeats": True, "steps": 3, "order": "random"},
    "no repeats, threshold": {"no_repeats": True, "threshold": 0.02},
    "no repeats, entropy bound": {"no_repeats": True, "entropy_bound": 6.0},
    "no repeats, refined": {"no_repeats": True, "refine": "low_confidence", "refine_tokens": 4, "steps": 13},
}


def check_against_literal(model, tokenizer, rows, law: Law, spec, batch_size: int, steps_per_call: int) -> tuple[int, int]:
    """Compares rows with the law written out; returns their forward passes, and for how many rows rounding may decide."""
    undecided = 0
    got = TextSampler(model, tokenizer, spec, law, batch_size, steps_per_call=steps_per_call, chunk=5).infill(rows)
    for row, result in zip(rows, got, strict=True):
        canvas = build_canvas(tokenizer, spec, row.target, row.prompt_tokens)
        expected = literal_infill(
            model,
            list(canvas.ids),
            range(*canvas.prompt_span),
            range(*canvas.condition_span),
            seed=row.seed,
            law=law,
            banned=list(BANNED),
            mask=MASK,
            shift=spec.shift,
        )
        if expected.undecided:
            undecided += 1
            continue
        assert list(result.token_ids) == expected.tokens
        assert result.nfe == expected.nfe
        assert result.logprob == pytest.approx(expected.logprob, abs=1e-4)
    return sum(result.nfe for result in got), undecided


@settings(max_examples=12, deadline=None)
@given(rows=rows, law=laws, spec=st.sampled_from([CHAT, ANSWER]), batch_size=st.integers(1, 4), steps_per_call=st.integers(1, 5))
def test_equals_the_law_written_out_literally(model, tokenizer, rows, law: Law, spec, batch_size: int, steps_per_call) -> None:
    _, undecided = check_against_literal(model, tokenizer, rows, law, spec, batch_size, steps_per_call)
    event(f"rows with a tie that rounding decides: {undecided}")


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("spec", [CHAT, ANSWER], ids=["chat", "answer"])
def test_every_option_equals_the_law_written_out_literally(model, tokenizer, option, spec) -> None:
    ask = [InfillRow(target, masks, 31 + masks) for target, masks in (("sure here", 9), ("abc. abc", 4), ("a plan for b", 7))]
    steps = 13 if "refine" in option else 6
    law = Law(**{"steps": steps, **option})
    nfe, undecided = check_against_literal(model, tokenizer, ask, law, spec, batch_size=2, steps_per_call=3)
    assert undecided < len(ask)
    plain = sum(min(law.steps, row.prompt_tokens) for row in ask)
    if law.guidance and law.threshold is None:
        assert nfe == 2 * plain
    if law.refine:
        assert nfe == len(ask) * law.steps  # the whole budget is used
    elif law.threshold or law.entropy_bound:
        assert nfe < law.passes * plain


def test_a_wholly_hidden_condition_leaves_ties_to_the_left_position(model, tokenizer) -> None:
    """There every mask sees the same canvas of nothing but masks: only the order of positions can decide."""
    # A short canvas is hidden whole in about one step of ten.
    rows = [InfillRow("a" * (1 + seed % 5), 3 + seed % 7, seed) for seed in range(120)]
    alone = [TextSampler(model, tokenizer, ANSWER, Law(2), 1).infill([row])[0].token_ids for row in rows]
    for batch_size in (4, 60):
        together = TextSampler(model, tokenizer, ANSWER, Law(2), batch_size).infill(rows)
        assert [result.token_ids for result in together] == alone


@settings(max_examples=16, deadline=None)
@given(
    rows=rows,
    law=laws | st.sampled_from([Law(**{"steps": 6, **option}) for option in OPTIONS.values()]),
    spec=st.sampled_from([CHAT, ANSWER]),
    order=st.randoms(use_true_random=False),
)
def test_a_row_alone_equals_the_row_in_any_batch(model, tokenizer, rows, law: Law, spec, order) -> None:
    sampler = TextSampler(model, tokenizer, spec, law, batch_size=3)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    together = dict(zip(shuffled, sampler.infill([rows[i] for i in shuffled]), strict=True))
    for i, row in enumerate(rows):
        (alone,) = sampler.infill([row])
        assert alone.token_ids == together[i].token_ids
        assert alone.logprob == pytest.approx(together[i].logprob, abs=1e-4)


class Recorder(TextSampler):
    """Keeps what the model saw, and the rows as they lay on the device before and after each call."""

    def advance(self, rows, steps):
        self.seen = getattr(self, "seen", [])
        before = Pack.of(rows, "cpu")
        super().advance(rows, steps)
        self.calls = [*getattr(self, "calls", []), (steps, before, Pack.of(rows, "cpu"))]

    def states(self, ids, packing):
        self.seen = [*getattr(self, "seen", []), ids]
        return super().states(ids, packing)


@settings(max_examples=16, deadline=None)
@given(rows=rows, law=laws | st.sampled_from([Law(**{"steps": 6, **option}) for option in OPTIONS.values()]))
def test_known_tokens_stay_bans_hold_and_every_mask_is_filled_in_its_budget(model, tokenizer, rows, law: Law) -> None:
    sampler = Recorder(model, tokenizer, CHAT, law, batch_size=2)
    results = sampler.infill(rows)
    for row, result in zip(rows, results, strict=True):
        assert len(result.token_ids) == row.prompt_tokens
        assert not set(result.token_ids) & set(BANNED)
        assert law.passes <= result.nfe <= law.passes * law.budget(row.prompt_tokens)
        assert result.logprob < 0
    for _, before, after in sampler.calls:
        assert torch.equal(before.ids[~before.prompt], after.ids[~after.prompt])
        if law.refine is None:
            written = before.prompt & (before.ids != MASK)
            assert torch.equal(before.ids[written], after.ids[written])
    # Every call's packs tell where the condition lies: nothing else is ever hidden from the model.
    seen = iter(sampler.seen)
    for _, before, _ in sampler.calls:
        while (ids := next(seen, None)) is not None and len(ids) == len(before.ids):
            fixed = ~before.prompt & ~before.condition
            if not torch.equal(ids[fixed], before.ids[fixed]):
                break
        if ids is not None:
            seen = iter([ids, *seen])
    assert next(seen, None) is None


def test_a_fixed_schedule_takes_as_many_steps_as_planned(model, tokenizer) -> None:
    ask = [InfillRow("sure here", masks, masks) for masks in (3, 5, 9)]
    results = TextSampler(model, tokenizer, CHAT, Law(5)).infill(ask)
    assert [result.nfe for result in results] == [3, 5, 5]


def test_parallel_rules_meet_their_ends(model, tokenizer) -> None:
    """A confidence of anything takes one step, one of certainty as many as masks, under the same law otherwise."""
    ask = [InfillRow("sure here", masks, masks) for masks in (3, 5, 9)]

    def run(**options):
        return TextSampler(model, tokenizer, CHAT, Law(9, **options)).infill(ask)

    assert [result.nfe for result in run(threshold=1e-9)] == [1, 1, 1]
    assert run(threshold=1.0) == run() == run(entropy_bound=0.0)
    assert [result.nfe for result in run(entropy_bound=1e9)] == [1, 1, 1]


def test_the_head_sees_masked_positions_only(model, tokenizer) -> None:
    """So that memory grows with the masks under way, or stays at one chunk, and never with canvas times vocabulary."""
    law, seen = Law(4), []
    sampler = TextSampler(model, tokenizer, CHAT, law, batch_size=4, chunk=7)

    def head(states):
        seen.append(len(states))
        return model.get_output_embeddings()(states)

    sampler.head = head
    sampler.infill([InfillRow("sure here is a plan", masks, masks) for masks in (8, 8, 4, 6)])
    # Of 26 masks, an even share of each row goes at every step.
    left = [(8 - 2 * s) * 2 + (4 - s) + (6 - [0, 2, 4, 5][s]) for s in range(4)]
    assert sum(seen) == sum(left)
    assert max(seen) == 7


def distinct(model, tokenizer, law: Law, n: int = 12) -> int:
    sampler = TextSampler(model, tokenizer, CHAT, law)
    return len({r.token_ids for r in sampler.infill([InfillRow("sure here is a plan", 8, seed) for seed in range(n)])})


def test_where_diversity_comes_from(model, tokenizer) -> None:
    assert distinct(model, tokenizer, Law(8, 0.0, remask_condition=False)) == 1
    assert distinct(model, tokenizer, Law(8, 0.0, remask_condition=True)) >= 6
    assert distinct(model, tokenizer, Law(8, 1.0, remask_condition=False)) >= 11


def repeats(tokens: tuple[int, ...]) -> int:
    return sum(a == b for a, b in pairwise(tokens))


def test_no_token_follows_itself_but_where_the_last_step_has_to_fill_neighbors(model, tokenizer) -> None:
    ask = [InfillRow("sure here is a plan", 9, seed) for seed in range(12)]

    def written(steps: int, **law: Any) -> list[int]:
        found = TextSampler(model, tokenizer, CHAT, Law(steps, **law)).infill(ask)
        return [repeats(one.token_ids) for one in found]

    assert sum(written(9)) > 4
    # One token a step: there is no step that fills two at once.
    assert written(9, no_repeats=True) == [0] * 12
    assert 4 * sum(written(3, no_repeats=True)) < sum(written(3))


def test_seeds_reproduce(model, tokenizer) -> None:
    ask = [InfillRow("sure", 6, seed) for seed in (1, 2**63 - 1)]
    sampler = TextSampler(model, tokenizer, CHAT, Law(6, 1.0))
    first = sampler.infill(ask)
    torch.manual_seed(99)
    assert sampler.infill(ask) == first
    assert first[0].token_ids != first[1].token_ids


def test_finished_rows_leave_and_waiting_ones_take_their_place(model, tokenizer) -> None:
    sampler = Recorder(model, tokenizer, CHAT, Law(9), batch_size=2, steps_per_call=4)
    sampler.infill([InfillRow("sure", masks, 0) for masks in (2, 9, 2, 3)])
    assert [(steps, len(before.steps)) for steps, before, _ in sampler.calls] == [(3, 2), (2, 2), (2, 2), (2, 1)]


def test_no_row_is_read_between_the_steps_of_a_call(model, tokenizer, monkeypatch) -> None:
    """Rows are taken apart at a call's ends only: on a GPU each look at one would wait for everything before it."""
    inside, looks = [False], []
    for name in ("tolist", "item"):
        plain = getattr(torch.Tensor, name)

        def counted(tensor, plain=plain):
            looks.append(inside[0])
            return plain(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)
    sampler = TextSampler(model, tokenizer, CHAT, Law(6, temperature=0.7))
    states = sampler.states

    def once(ids, packing):
        inside[0] = True
        return states(ids, packing)

    store = Pack.store

    def stored(pack, rows):
        inside[0] = False
        store(pack, rows)

    monkeypatch.setattr(sampler, "states", once)
    monkeypatch.setattr(Pack, "store", stored)
    sampler.infill([InfillRow("sure here", masks, masks) for masks in (6, 8)])
    assert looks.count(True) == 0
    assert looks.count(False) > 0


def test_the_prompt_is_decoded(model, tokenizer) -> None:
    (result,) = TextSampler(model, tokenizer, CHAT, Law(4)).infill([InfillRow("sure", 4, 0)])
    assert result.prompt == tokenizer.decode(list(result.token_ids), skip_special_tokens=True).strip()
    assert result.prompt


def test_no_rows_no_work(model, tokenizer) -> None:
    assert TextSampler(model, tokenizer, CHAT, Law(4)).infill([]) == []


def test_the_head_keeps_one_piece_of_memory(model) -> None:
    linear = model.get_output_embeddings()
    states = torch.randn(9, linear.weight.shape[1])
    with torch.no_grad():
        head = ReusingHead(linear)
        first = head(states)
        torch.testing.assert_close(first, linear(states))
        again = head(states[:4])
        torch.testing.assert_close(again, linear(states[:4]))
    assert again.data_ptr() == first.data_ptr()
