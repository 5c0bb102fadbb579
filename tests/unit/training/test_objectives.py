"""Each loss against values worked out by hand from the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dat_ray.training.objectives import (
    away_loss,
    forward_kl,
    full_precision,
    retain_loss,
    row_means,
    token_logprobs,
    toward_loss,
)

# Log-probabilities of a vocabulary of three at four tokens: ln of simple fractions.
PROBABILITIES = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5]]


def logits() -> torch.Tensor:
    # A constant added to a row's logits changes no probability.
    return torch.tensor(PROBABILITIES, dtype=torch.float64).log() + torch.tensor([[3.0], [-1.0], [0.5], [7.0]])


def test_token_logprobs_are_the_log_of_the_probabilities() -> None:
    found = token_logprobs(logits(), torch.tensor([1, 2, 0, 2]))
    expected = [math.log(0.25), math.log(0.7), math.log(0.6), math.log(0.5)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_row_mean_is_over_its_own_tokens() -> None:
    values = torch.tensor([-1.0, -2.0, -4.0, -9.0], dtype=torch.float64)
    assert row_means(values, torch.tensor([0, 1, 1, 1]), 2).tolist() == pytest.approx([-1.0, -5.0], abs=1e-12)


def test_away_and_toward_by_hand() -> None:
    # Row 0 has one token, row 1 three: means of rows, not of tokens.
    logprobs = row_means(token_logprobs(logits(), torch.tensor([1, 2, 0, 2])), torch.tensor([0, 1, 1, 1]), 2)
    row_0, row_1 = math.log(0.25), (math.log(0.7) + math.log(0.6) + math.log(0.5)) / 3
    assert away_loss(logprobs, None, 2).item() == pytest.approx((row_0 + row_1) / 2, abs=1e-12)
    assert toward_loss(logprobs, None, 2).item() == pytest.approx(-(row_0 + row_1) / 2, abs=1e-12)


def test_token_id_0_counts_in_a_response() -> None:
    with_zero = token_logprobs(logits()[:2], torch.tensor([0, 2]))
    mean = row_means(with_zero, torch.tensor([0, 0]), 1)
    assert mean.item() == pytest.approx((math.log(0.5) + math.log(0.7)) / 2, abs=1e-12)


def test_an_away_row_below_the_cutoff_gives_no_gradient() -> None:
    logprobs = torch.tensor([-6.0, -4.0], requires_grad=True)
    loss = away_loss(logprobs, -5.0, 2)
    loss.backward()
    assert loss.item() == pytest.approx((-5.0 - 4.0) / 2)
    assert logprobs.grad.tolist() == [0.0, 0.5]


def test_a_toward_row_under_the_cutoff_gives_no_gradient() -> None:
    logprobs = torch.tensor([-0.25, -2.0], requires_grad=True)
    loss = toward_loss(logprobs, 0.5, 2)
    loss.backward()
    assert loss.item() == pytest.approx((0.5 + 2.0) / 2)
    assert logprobs.grad.tolist() == [0.0, -0.5]


def test_kl_has_the_teacher_first() -> None:
    teacher = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(forward - reverse) > 0.1
    assert forward_kl(teacher, student).item() == pytest.approx(forward, abs=1e-12)
    assert forward_kl(student, teacher).item() == pytest.approx(reverse, abs=1e-12)


def test_kl_of_equal_models_is_0_with_0_gradient() -> None:
    student = logits().requires_grad_(True)
    loss = retain_loss(forward_kl(logits(), student), 4)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    assert student.grad.abs().max().item() < 1e-14


def test_the_teacher_takes_no_gradient() -> None:
    teacher = logits().requires_grad_(True)
    student = (2 * logits()).requires_grad_(True)
    forward_kl(teacher, student).sum().backward()
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
    for loss in (lambda v: away_loss(v, -5.0, len(values)), lambda v: toward_loss(v, 0.5, len(values))):
        assert sum(loss(part).item() for part in parts) == pytest.approx(loss(whole).item(), abs=1e-12)
    assert sum(retain_loss(-part, len(values)).item() for part in parts) == pytest.approx(-sum(values) / len(values))
