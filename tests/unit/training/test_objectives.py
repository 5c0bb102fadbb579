"""Each loss against values worked out by hand from the definitions."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dat_ray.config.training import TrainingConfig
from dat_ray.training.objectives import (
    away_rows,
    cut_off,
    full_precision,
    harmful_loss,
    ipo_rows,
    kl_divergence,
    normalized_factor,
    retain_loss,
    retain_tokens,
    row_means,
    token_log_odds,
    token_logprobs,
    toward_rows,
    unlikelihood,
)

# Log-probabilities of a vocabulary of three at four tokens: ln of simple fractions.
PROBABILITIES = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5]]


def logits() -> torch.Tensor:
    # A constant added to a row's logits changes no probability.
    return torch.tensor(PROBABILITIES, dtype=torch.float64).log() + torch.tensor([[3.0], [-1.0], [0.5], [7.0]])


def config(**fields: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"retain_rows": 0, "retain_weight": 0.0, **fields})


def nats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Row 0 has one token, row 1 three.
ROWS = torch.tensor([0, 1, 1, 1])


def test_token_logprobs_are_the_log_of_the_probabilities() -> None:
    found = token_logprobs(logits(), torch.tensor([1, 2, 0, 2]))
    expected = [math.log(0.25), math.log(0.7), math.log(0.6), math.log(0.5)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_row_mean_is_over_its_own_tokens() -> None:
    values = torch.tensor([-1.0, -2.0, -4.0, -9.0], dtype=torch.float64)
    assert row_means(values, torch.tensor([0, 1, 1, 1]), 2).tolist() == pytest.approx([-1.0, -5.0], abs=1e-12)


def test_away_and_toward_by_hand() -> None:
    # Means of rows, not of tokens.
    logprobs = token_logprobs(logits(), torch.tensor([1, 2, 0, 2]))
    row_0, row_1 = math.log(0.25), (math.log(0.7) + math.log(0.6) + math.log(0.5)) / 3
    assert away_rows(logprobs, ROWS, 2, config()).tolist() == pytest.approx([row_0, row_1], abs=1e-12)
    assert toward_rows(logprobs, ROWS, 2, config()).tolist() == pytest.approx([-row_0, -row_1], abs=1e-12)
    assert harmful_loss(nats(row_0, row_1), None, 2).item() == pytest.approx((row_0 + row_1) / 2, abs=1e-12)


def test_token_id_0_counts_in_a_response() -> None:
    with_zero = token_logprobs(logits()[:2], torch.tensor([0, 2]))
    mean = row_means(with_zero, torch.tensor([0, 0]), 1)
    assert mean.item() == pytest.approx((math.log(0.5) + math.log(0.7)) / 2, abs=1e-12)


@pytest.mark.parametrize(("values", "cutoff"), [([-6.0, -4.0], -5.0), ([0.25, 2.0], 0.5)], ids=["away", "toward"])
def test_a_row_past_a_clamped_cutoff_gives_no_gradient(values: list[float], cutoff: float) -> None:
    found = torch.tensor(values, requires_grad=True)
    loss = harmful_loss(cut_off(found, cutoff, "clamp"), None, 2)
    loss.backward()
    assert loss.item() == pytest.approx((cutoff + values[1]) / 2)
    assert found.grad.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(("values", "cutoff"), [([-6.0, -4.0], -5.0), ([0.25, 2.0], 0.5)], ids=["away", "toward"])
def test_cats_soft_cutoff_is_its_formula_and_jumps(values: list[float], cutoff: float) -> None:
    found = nats(*values).requires_grad_(True)
    held = cut_off(found, cutoff, "soft")
    held.sum().backward()
    assert held.tolist() == pytest.approx([cutoff + 0.001 * values[0], values[1]], abs=1e-12)
    assert found.grad.tolist() == pytest.approx([0.001, 1.0], abs=1e-12)
    below, at = cut_off(nats(cutoff - 1e-9, cutoff), cutoff, "soft").tolist()
    assert below - at == pytest.approx(0.001 * cutoff, abs=1e-8), "not continuous: a jump of 0.001 * value"


def test_unlikelihood_by_hand() -> None:
    # Of vocabularies of three, the first token; its logarithm has the constant that logits may have.
    chances = nats(0.5, 0.25, 0.9, 0.001)
    table = torch.stack([chances, (1 - chances) / 4, 3 * (1 - chances) / 4], dim=1).log() + 3.0
    first = torch.zeros(4, dtype=torch.int64)
    logprobs, log_odds = token_logprobs(table, first), token_log_odds(table, first)
    expected = [-math.log(0.5), -math.log(0.75), -math.log(0.1), -math.log(0.999)]
    assert log_odds.tolist() == pytest.approx([0.0, math.log(1 / 3), math.log(9), math.log(1 / 999)], abs=1e-12)
    assert unlikelihood(log_odds, None).tolist() == pytest.approx(expected, abs=1e-12)
    # The last token is below the cutoff: dropped, but still one of its row's three.
    row_1 = (expected[1] + expected[2]) / 3
    rows = away_rows(logprobs, ROWS, 2, config(away="unlikelihood", away_cutoff=-5.0), log_odds)
    assert rows.tolist() == pytest.approx([expected[0], row_1], abs=1e-12)


@pytest.mark.parametrize("gap", [-60.0, -18.0, -3.0, 0.0, 3.0, 18.0, 40.0, 120.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_unlikelihood_and_its_slope_in_decimals(dtype: torch.dtype, gap: float) -> None:
    """Against fifty-digit arithmetic, also where p rounds to 1: 49 equal logits, and one `gap` above them."""
    with localcontext() as context:
        context.prec = 120
        odds = Decimal(gap).exp() / 49  # p / (1 - p)
        loss, slope, other = (1 + odds).ln(), odds / (1 + odds), odds / (1 + odds) / 49
    table = torch.full((1, 50), 2.0, dtype=dtype)
    table[0, 7] += gap
    table.requires_grad_(True)
    found = unlikelihood(token_log_odds(table, torch.tensor([7])), None)
    found.sum().backward()
    relative = {torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    # A gradient is rounded to the logits' dtype, whose smallest number is 6e-8 in half precision.
    least = 6e-8 if dtype == torch.float16 else 0.0
    assert found.item() == pytest.approx(float(loss), rel=min(relative, 1e-5))
    assert table.grad[0, 7].item() == pytest.approx(float(slope), rel=relative, abs=least)
    assert table.grad[0, 8].item() == pytest.approx(-float(other), rel=relative, abs=least)


def test_where_p_rounds_to_1_unlikelihood_still_pushes() -> None:
    table = torch.zeros(1, 50)
    table[0, 0] = 18.0
    assert token_logprobs(table, torch.tensor([0])).item() == 0.0
    table.requires_grad_(True)
    loss = unlikelihood(token_log_odds(table, torch.tensor([0])), -5.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(18 - math.log(49), abs=1e-5)
    assert table.grad[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_gradients_of_unlikelihood_with_and_without_a_cutoff() -> None:
    generator = torch.Generator().manual_seed(2)
    table = (6 * torch.randn(12, 9, generator=generator, dtype=torch.float64)).requires_grad_(True)
    targets = torch.randint(9, (12,), generator=generator)
    for cutoff in (None, -4.0):
        assert torch.autograd.gradcheck(lambda x, c=cutoff: unlikelihood(token_log_odds(x, targets), c), [table])
    dropped = token_logprobs(table, targets) < -4.0
    assert 0 < dropped.sum() < 12
    (gradient,) = torch.autograd.grad(unlikelihood(token_log_odds(table, targets), -4.0).sum(), table)
    assert torch.equal(gradient.abs().sum(1) == 0, dropped)


def test_the_normalized_factor_is_the_public_codes() -> None:
    # Token sums 0.03 and 0.01 of a vocabulary of 4: element mean 0.005, divided by 0.005 + 1e-8; a token mean is 0.02.
    assert normalized_factor(0.02, 4) * 0.02 == pytest.approx(0.005 / (0.005 + 1e-8), rel=1e-12)
    assert normalized_factor(0.0, 128_256) == pytest.approx(1 / 1.28256e-3, rel=1e-12)
    assert normalized_factor(-1e-9, 128_256) == normalized_factor(0.0, 128_256)


def test_ipo_by_hand() -> None:
    harmful, refusal = nats(-1.0, -2.0, -6.0, -4.0), nats(-0.5, -3.0, -0.1, -2.0)
    reference = nats(0.5, -0.25)
    rows = (ROWS, ROWS)
    # Row 0: margin -0.5 - (-1.0); row 1: (-3.0 - 0.1 - 2.0) / 3 - (-2.0 - 6.0 - 4.0) / 3. Preferred: 1 / (2 * 0.25) = 2.
    expected = [(0.5 - 0.5 - 2.0) ** 2, (-5.1 / 3 + 12.0 / 3 + 0.25 - 2.0) ** 2]
    assert ipo_rows(harmful, refusal, reference, rows, config(away="ipo")).tolist() == pytest.approx(expected, abs=1e-12)
    # CAPO's cutoffs: log p(y) = -6 < -5 counts as 0, so does log p(y_ref) > -0.2; the denominators stay 3.
    expected = [(-0.5 + 1.0 - 0.5 - 2.0) ** 2, (-5.0 / 3 + 6.0 / 3 + 0.25 - 2.0) ** 2]
    cfg = config(away="ipo", away_cutoff=-5.0, toward_cutoff=0.2)
    assert ipo_rows(harmful, refusal, reference, rows, cfg).tolist() == pytest.approx(expected, abs=1e-12)
    assert ipo_rows(nats(-1.0), nats(1.0), nats(0.0), (ROWS[:1], ROWS[:1]), config(away="ipo")).item() == 0.0


def test_a_clipped_row_stays_within_its_bound_and_gives_no_gradient() -> None:
    losses = nats(-7.0, 0.5, 9.0).requires_grad_(True)
    loss = harmful_loss(losses, 2.0, 3)
    loss.backward()
    assert loss.item() == pytest.approx((-2.0 + 0.5 + 2.0) / 3, abs=1e-12)
    assert losses.grad.tolist() == pytest.approx([0.0, 1 / 3, 0.0], abs=1e-12)


def test_two_distributions_tell_the_directions_of_the_kl_apart() -> None:
    base, model = nats(0.9, 0.1).log()[None], nats(0.5, 0.5).log()[None]
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(forward - reverse) > 0.1
    assert kl_divergence(base, model).item() == pytest.approx(forward, abs=1e-12)
    token = torch.tensor([1])
    assert retain_tokens(base, model, token, "kl_forward").item() == pytest.approx(forward, abs=1e-12)
    assert retain_tokens(base, model, token, "kl_reverse").item() == pytest.approx(reverse, abs=1e-12)
    assert retain_tokens(None, model, token, "ce").item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("form", ["kl_forward", "kl_reverse"])
def test_kl_of_equal_models_is_0_with_0_gradient(form: str) -> None:
    student = logits().requires_grad_(True)
    loss = retain_loss(retain_tokens(logits(), student, torch.zeros(4, dtype=torch.int64), form), 4)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    assert student.grad.abs().max().item() < 1e-14


@pytest.mark.parametrize("form", ["kl_forward", "kl_reverse"])
def test_the_teacher_takes_no_gradient(form: str) -> None:
    teacher = logits().requires_grad_(True)
    student = (2 * logits()).requires_grad_(True)
    retain_tokens(teacher, student, torch.zeros(4, dtype=torch.int64), form).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0.01


def test_half_precision_logits_are_reduced_in_float32() -> None:
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@given(st.lists(st.floats(-20, 0), min_size=2, max_size=9), st.data())
def test_shares_of_workers_add_up_to_the_whole(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    whole = torch.tensor(values, dtype=torch.float64)
    parts = [whole[:cut], whole[cut:]]
    for form in ("clamp", "soft"):

        def loss(part: torch.Tensor, form: str = form) -> torch.Tensor:
            return harmful_loss(cut_off(part, -5.0, form), 9.0, len(values))

        assert sum(loss(part).item() for part in parts) == pytest.approx(loss(whole).item(), abs=1e-12)
    assert sum(retain_loss(-part, len(values)).item() for part in parts) == pytest.approx(-sum(values) / len(values))
