from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from dat_ray.diffusion.backbone import hidden_states, output_head, pad_rows
from dat_ray.diffusion.canvas import Canvas
from dat_ray.diffusion.likelihood import MaskedModel, log_likelihood, masked_positions, written

MASK = 3


def states_of(model):
    def states(rows):
        ids, valid = pad_rows([list(row) for row in rows], MASK)
        return hidden_states(model, ids, valid)[valid]

    return states


def canvas(prompt, shift_token=(1,), response=(0, 2, 9, 11, 7)) -> Canvas:
    lo, hi = len(shift_token), len(shift_token) + len(prompt)
    return Canvas((*shift_token, *prompt, *response), (lo, hi), (hi, hi + len(response)))


def bound(model, rows, seeds, samples, shift=1, batch_size=4, chunk=3):
    masked = MaskedModel(MASK, shift, states_of(model), output_head(model), batch_size, chunk)
    return log_likelihood(masked, rows, seeds, samples)


def plain_term(model, row: Canvas, places, shift: int) -> float:
    """(n / l) times the summed log-probabilities, from the whole model's logits."""
    ids = list(row.ids)
    for place in places:
        ids[place] = MASK
    T = len(ids)
    logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, 1, T, T, dtype=torch.bool)).logits[0].double()
    logprobs = logits.log_softmax(-1)
    lo, hi = row.prompt_span
    return float(sum(logprobs[place - shift, row.ids[place]] for place in places)) * (hi - lo) / len(places)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_prompt_of_one_token_has_its_exact_likelihood(model, shift) -> None:
    for token in (5, 20, 33):
        row = canvas((token,))
        (found,) = bound(model, [row], [7], 16, shift)
        with torch.no_grad():
            exact = plain_term(model, row, [1], shift)
        assert found.value == pytest.approx(exact, abs=1e-4)
        assert (found.error, found.nfe) == (0.0, 1)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 1])
def test_the_estimate_is_the_mean_of_its_terms_and_unbiased(model, shift) -> None:
    row, samples = canvas((5, 20, 33)), 6
    (found,) = bound(model, [row], [11], samples, shift)
    terms = [plain_term(model, row, masked_positions(11, s, samples, row.prompt_span), shift) for s in range(samples)]
    assert found.value == pytest.approx(sum(terms) / samples, abs=1e-4)
    # Every set of every size, by enumeration.
    exact = 0.0
    for size in (1, 2, 3):
        sets = list(itertools.combinations((1, 2, 3), size))
        exact += sum(plain_term(model, row, places, shift) for places in sets) / len(sets) / 3
    seeds = list(range(200))
    estimates = bound(model, [row] * len(seeds), seeds, samples, shift, batch_size=64, chunk=64)
    values = torch.tensor([one.value for one in estimates], dtype=torch.float64)
    truth = float(values.std()) / math.sqrt(len(seeds))
    assert abs(float(values.mean()) - exact) < 4.5 * truth
    # The reported error is about the real one, and not below it: strata differ, which it counts as noise.
    reported = sum(one.error for one in estimates) / len(seeds)
    assert 0.8 < reported / float(values.std()) < 3


def test_sizes_are_stratified_and_uniform() -> None:
    span, samples = (2, 7), 5
    sizes: Counter[int] = Counter()
    for seed in range(150):
        drawn = [masked_positions(seed, s, samples, span) for s in range(samples)]
        assert [len(one) for one in drawn] == [1, 2, 3, 4, 5], "one sample in each of five equal parts"
        sizes.update(len(one) for one in (masked_positions(seed, s, 2, span) for s in range(2)))
        assert all(set(one) <= set(range(2, 7)) and one == sorted(set(one)) for one in drawn)
    # Two strata over five sizes: each size has 300 / 5 draws on average; the third is split between both strata.
    assert all(abs(sizes[size] - 60) < 4.5 * math.sqrt(60) for size in range(1, 6))


def test_a_row_does_not_depend_on_its_batch(model) -> None:
    rows = [canvas((5, 6)), canvas((7,) * 9), canvas((20,)), canvas((9, 9, 30, 31))]
    seeds = [3, 2**63 - 1, 5, 3]
    together = bound(model, rows, seeds, 4, batch_size=16, chunk=100)
    alone = [bound(model, [row], [seed], 4, batch_size=1, chunk=2)[0] for row, seed in zip(rows, seeds, strict=True)]
    backwards = bound(model, rows[::-1], seeds[::-1], 4, batch_size=3)[::-1]
    for one, other, third in zip(together, alone, backwards, strict=True):
        assert (one.value, one.error) == pytest.approx((other.value, other.error), abs=1e-3)
        assert (one.value, one.error) == pytest.approx((third.value, third.error), abs=1e-3)


def test_the_response_matters_and_the_head_sees_masked_positions_only(model) -> None:
    rows = [canvas((5, 20, 33)), canvas((5, 20, 33), response=(0, 2, 30, 31, 32))]
    first, second = bound(model, rows, [1, 1], 4)
    assert abs(first.value - second.value) > 1e-3
    seen = []

    def head(states):
        seen.append(len(states))
        return output_head(model)(states)

    log_likelihood(MaskedModel(MASK, 1, states_of(model), head, 4, 2), rows[:1], [1], 4)
    assert sum(seen) == sum(len(masked_positions(1, s, 4, (1, 4))) for s in range(4))
    assert max(seen) <= 2


def test_a_prompt_is_written_into_its_canvas() -> None:
    row = written(Canvas((1, MASK, MASK, 9), (1, 3), (3, 4)), (5, 6))
    assert row.ids == (1, 5, 6, 9)
