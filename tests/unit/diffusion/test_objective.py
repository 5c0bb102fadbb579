from __future__ import annotations

import math

import pytest
import torch

from dat_ray.diffusion.objective import (
    conditional_gain,
    corrupt,
    fully_masked,
    loss_and_backward,
    prompt_cross_entropy,
    prompt_hidden_states,
)
from dat_ray.diffusion.pairs import EncodedPair
from tests.unit.diffusion.tiny import MASK, tiny_model


def pairs(n: int, prompt: int = 6, response: int = 4) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(n):
        x = torch.randint(5, 36, (prompt,), generator=generator).tolist()
        y = torch.randint(5, 36, (response,), generator=generator).tolist()
        rows.append(EncodedPair((1, 4, *x, 0, 2, *y), (2, 2 + prompt), (4 + prompt, 4 + prompt + response)))
    return rows


def test_masks_lie_in_the_prompt_and_labels_are_what_was_there() -> None:
    rows = pairs(16)
    batch = corrupt(rows, 0, 0, MASK)
    assert set(batch.rows.tolist()) == set(range(16))  # at least one mask in each
    for row, position, label in zip(batch.rows.tolist(), batch.positions.tolist(), batch.labels.tolist(), strict=True):
        assert 2 <= position < 8
        assert batch.ids[row, position] == MASK
        assert rows[row].ids[position] == label
    clean = torch.tensor([row.ids for row in rows])
    clean[batch.rows, batch.positions] = MASK
    same = batch.ids == clean
    assert same[:, :10].all()
    assert (batch.ids[~same] == MASK).all()


def test_shares_of_masked_prompts_responses_and_cuts() -> None:
    B, steps = 32, 30
    rows = pairs(B, prompt=20, response=10)
    masked, touched, hidden, cut = [], 0, 0, 0
    for step in range(steps):
        batch = corrupt(rows, 1, step, MASK, response_mask_share=0.5, response_cut_share=0.25)
        masked.append(torch.bincount(batch.rows, minlength=B) / 20)
        response = batch.ids[:, 24:] == MASK
        lengths = batch.valid[:, 24:].sum(1)
        hidden += int((response & batch.valid[:, 24:]).sum())
        touched += int(((response & batch.valid[:, 24:]).any(1)).sum())
        cut += int((lengths < 10).sum())
    rates = torch.cat(masked)
    n = B * steps
    # t is uniform, so the share of masked tokens has mean 1/2 and variance 1/12 + E[t(1-t)]/20 (first mask forced: small).
    assert float(rates.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(rates.var()) == pytest.approx(1 / 12 + 1 / 120, abs=0.008)
    assert hidden / (n * 10) == pytest.approx(0.25 * (0.75 + 0.25 * 0.55), abs=0.03)
    # A masked response of 10 shows no mask with probability E[(1-t)^10] = 1/11.
    assert 0.5 * 0.8 < touched / n < 0.5
    assert cut / n == pytest.approx(0.25 * 0.9, abs=0.03)


def test_rates_cover_the_unit_interval_in_every_batch() -> None:
    rows = pairs(10, prompt=400)
    shares = torch.bincount(corrupt(rows, 5, 3, MASK).rows, minlength=10) / 400
    for k, share in enumerate(sorted(shares.tolist())):
        assert k / 10 - 0.1 < share < (k + 1) / 10 + 0.1


def test_corruption_is_a_function_of_seed_and_step() -> None:
    rows = pairs(8)
    first = corrupt(rows, 2, 7, MASK, 0.5, 0.5)
    torch.manual_seed(123)
    again = corrupt(rows, 2, 7, MASK, 0.5, 0.5)
    assert torch.equal(first.ids, again.ids)
    for other in (corrupt(rows, 2, 8, MASK, 0.5, 0.5), corrupt(rows, 3, 7, MASK, 0.5, 0.5)):
        assert other.ids.shape != first.ids.shape or not torch.equal(first.ids, other.ids)


def test_weights() -> None:
    rows = pairs(8, prompt=50)
    mean = corrupt(rows, 0, 0, MASK)
    assert torch.allclose(mean.weights, torch.full_like(mean.weights, 1 / len(mean.labels)))
    bound = corrupt(rows, 0, 0, MASK, loss_weight="inverse_rate")
    # For a loss of 1 nat everywhere the bound is 1: E[masked / t] / length = 1.
    totals = [float(corrupt(rows, 0, step, MASK, loss_weight="inverse_rate").weights.sum()) for step in range(100)]
    assert sum(totals) / 100 == pytest.approx(1.0, abs=0.04)
    for row in range(8):
        assert len(bound.weights[(bound.rows == row) & (bound.weights > 0)].unique()) <= 1


def test_hidden_state_on_the_left_predicts_a_token() -> None:
    model = tiny_model()
    batch = fully_masked(pairs(2), MASK)
    ids = batch.ids
    T = ids.shape[1]
    full = model.model(input_ids=ids, attention_mask=torch.ones(2, 1, T, T, dtype=torch.bool)).last_hidden_state
    states = prompt_hidden_states(model, batch)
    assert torch.allclose(states[:6], full[0, 1:7], atol=1e-5)
    assert torch.allclose(states[6:], full[1, 1:7], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("frozen_head", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_and_the_gradient_of_every_weight_equal_the_plain_ones(tied: bool, frozen_head: bool, chunk: int) -> None:
    """Plain: the whole model with a mask of four dimensions, logits of every position, and autograd."""
    batch = corrupt(pairs(5), 0, 1, MASK, loss_weight="inverse_rate")
    model = tiny_model(tied=tied)
    model.get_output_embeddings().weight.requires_grad_(not frozen_head)
    loss = loss_and_backward(model, batch, chunk)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    T = batch.ids.shape[1]
    mask = batch.valid[:, None, None, :].expand(-1, 1, T, T)
    logits = model(input_ids=batch.ids, attention_mask=mask).logits.log_softmax(-1)
    plain = -(logits[batch.rows, batch.positions - 1, batch.labels] * batch.weights).sum()
    plain.backward()
    assert loss == pytest.approx(float(plain.detach()), rel=1e-5)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        expected = dict(model.named_parameters())[name].grad
        assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()) + 1e-7), name


def test_cross_entropy_of_a_row_does_not_depend_on_the_batch() -> None:
    rows = [*pairs(3), *pairs(2, prompt=3, response=9)]
    model = tiny_model()
    together = prompt_cross_entropy(model, rows, MASK, batch_size=4, chunk=3)
    for row, value in zip(rows, together.tolist(), strict=True):
        assert value == pytest.approx(float(prompt_cross_entropy(model, [row], MASK)), rel=1e-4)
    T = len(rows[0].ids)
    ids = fully_masked(rows[:1], MASK).ids
    logits = model(input_ids=ids, attention_mask=torch.ones(1, 1, T, T, dtype=torch.bool)).logits.log_softmax(-1)
    literal = -sum(float(logits[0, i - 1, rows[0].ids[i]].detach()) for i in range(2, 8))
    assert float(together[0]) == pytest.approx(literal, rel=1e-4)


def test_gain_of_a_model_that_ignores_the_response_is_zero_and_its_interval_is_that_of_the_rows() -> None:
    model = tiny_model()
    rows = pairs(12)
    gain = conditional_gain(model, rows, MASK)
    difference = torch.tensor(gain.other_rows) - torch.tensor(gain.own_rows)
    per_token = difference / 6
    assert gain.gain == pytest.approx(float(per_token.mean()), abs=1e-6)
    # Equal lengths: the ratio's error is that of a mean.
    error = 1.959964 * float(per_token.std()) / math.sqrt(12)
    assert gain.high - gain.gain == pytest.approx(error, rel=1e-4)
    assert gain.gain - gain.low == pytest.approx(error, rel=1e-4)
    assert gain.other - gain.own == pytest.approx(gain.gain, abs=1e-6)
    assert gain.tokens == (6,) * 12
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    blind = conditional_gain(model, rows, MASK)
    assert blind.gain == pytest.approx(0.0, abs=1e-6)
