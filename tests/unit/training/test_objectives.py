"""Each loss against values worked out by hand from the definitions."""

from __future__ import annotations

import math

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
    retain_loss,
    retain_tokens,
    row_means,
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
    logprobs = nats(0.5, 0.25, 0.9, 0.001).log()
    expected = [-math.log(0.5), -math.log(0.75), -math.log(0.1), -math.log(0.999)]
    assert unlikelihood(logprobs, None).tolist() == pytest.approx(expected, abs=1e-12)
    # The last token is below the cutoff: dropped, but still one of its row's three.
    row_1 = (expected[1] + expected[2]) / 3
    rows = away_rows(logprobs, ROWS, 2, config(away="unlikelihood", away_cutoff=-5.0))
    assert rows.tolist() == pytest.approx([expected[0], row_1], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unlikelihood_is_finite_where_p_is_1_or_0(dtype: torch.dtype) -> None:
    logprobs = torch.tensor([0.0, -1e-30, -200.0, -math.log(2)], dtype=dtype, requires_grad=True)
    losses = unlikelihood(logprobs, None)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logprobs.grad).all()
    assert losses[2].item() == pytest.approx(0.0, abs=1e-12)


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
