from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dat_ray.diffusion.law import Law, choose, denoise_step, hide_condition, propose, transfer_schedule

NO_BAN = torch.tensor([], dtype=torch.int64)


@given(masks=st.integers(1, 300), steps=st.integers(1, 300))
def test_schedule_sums_to_the_masks_and_every_step_commits(masks: int, steps: int) -> None:
    schedule = transfer_schedule(masks, steps)
    assert sum(schedule) == masks
    assert len(schedule) == min(masks, steps)
    assert max(schedule) - min(schedule) <= 1
    assert min(schedule) >= 1
    assert schedule == sorted(schedule, reverse=True)


def test_schedule_by_hand() -> None:
    assert transfer_schedule(10, 4) == [3, 3, 2, 2]
    assert transfer_schedule(64, 64) == [1] * 64
    assert transfer_schedule(3, 64) == [1, 1, 1]


def hide(lengths: list[int], spans: list[tuple[int, int]], rows_of_each: int, step: int = 0) -> torch.Tensor:
    """Where `hide_condition` put MASK (99): (lengths, rows_of_each, T)."""
    T, n = max(lengths), rows_of_each
    ids = torch.arange(T).expand(len(lengths) * n, T)
    place = torch.arange(T)[None]
    valid = place < torch.tensor(lengths).repeat_interleave(n)[:, None]
    span = torch.tensor(spans).repeat_interleave(n, 0)
    condition = (place >= span[:, :1]) & (place < span[:, 1:])
    seeds = torch.arange(n).repeat(len(lengths))
    hidden = hide_condition(ids, valid, condition, seeds, torch.full_like(seeds, step), 99)
    changed = hidden == 99
    assert torch.equal(hidden[~changed], ids[~changed])
    assert not (changed & ~condition).any()
    return changed.view(len(lengths), n, T)


def test_number_of_hidden_positions_is_uniform_from_1_to_the_canvas_length() -> None:
    n, L = 20_000, 8
    counts = torch.bincount(hide([L], [(0, L)], n)[0].sum(1), minlength=L + 1)
    assert counts[0] == 0
    chi_square = float(((counts[1:] - n / L) ** 2 / (n / L)).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, 0.1 %


def test_every_condition_token_is_hidden_with_probability_of_half_and_a_bit() -> None:
    # P(hidden) = E[r] / L = (L + 1) / (2 L), the same for every position.
    n, L = 20_000, 10
    rate = hide([L], [(4, 10)], n)[0].double().mean(0)
    assert rate[:4].sum() == 0
    assert torch.allclose(rate[4:], torch.full((6,), 11 / 20, dtype=torch.float64), atol=4 * (0.25 / n) ** 0.5)


def test_hiding_ignores_padding_and_batch_mates() -> None:
    ragged = hide([6, 12], [(2, 6), (5, 12)], 500)
    assert torch.equal(ragged[0][:, :6], hide([6], [(2, 6)], 500)[0])
    assert not torch.equal(ragged[1], hide([12], [(5, 12)], 500, step=1)[0])


def test_gumbel_draws_follow_the_tempered_softmax() -> None:
    n, tau = 40_000, 0.6
    logits = torch.tensor([1.0, 0.0, -0.5, 0.7, 3.0])
    seeds = torch.arange(n)
    tokens, _ = propose(logits.expand(n, 5), tau, seeds, seeds * 0, seeds * 0 + 3, torch.tensor([4]))
    expected = (logits[:4] / tau).softmax(0) * n
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    assert float(((counts[:4] - expected) ** 2 / expected).sum()) < 16.3  # 3 degrees of freedom, 0.1 %


def test_confidence_is_untempered_and_its_normalizer_includes_banned_tokens() -> None:
    logits = torch.tensor([[2.0, 1.0, 4.0]])
    one = torch.tensor([1])
    for tau in (0.0, 5.0):
        token, logprob = propose(logits, tau, one, one, one, torch.tensor([2]))
        assert token.item() in (0, 1)
        assert logprob.item() == pytest.approx(logits.log_softmax(1)[0, token].item(), abs=1e-6)
    assert logits.tolist() == [[2.0, 1.0, 4.0]]


def test_temperature_scales_the_noise() -> None:
    # As tau goes to 0 the draw becomes the argmax; the reference's untempered form would keep the noise.
    logits = torch.tensor([[1.0, 0.9, 0.0]]).expand(500, 3)
    seeds = torch.arange(500)
    cold, _ = propose(logits, 1e-3, seeds, seeds, seeds, NO_BAN)
    warm, _ = propose(logits, 1.0, seeds, seeds, seeds, NO_BAN)
    assert cold.unique().tolist() == [0]
    assert warm.unique().tolist() == [0, 1, 2]


def test_choose_takes_the_best_of_each_row_and_the_left_one_of_equals() -> None:
    rows = torch.tensor([1, 0, 0, 1, 0, 1])
    positions = torch.tensor([9, 4, 2, 7, 3, 8])
    priority = torch.tensor([0.5, 0.2, 0.2, 0.5, 0.9, 0.1])
    chosen = choose(rows, positions, priority, torch.tensor([2, 1]))
    assert [(int(rows[i]), int(positions[i])) for i in chosen] == [(0, 2), (0, 3), (1, 7)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[list[int]]]:
    rows = draw(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 40), st.integers(1, 4)), min_size=1, max_size=5))
    places = [draw(st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True).map(sorted)) for _ in rows]
    return rows, places


@settings(max_examples=60, deadline=None)
@given(
    problem=problems(),
    order=st.sampled_from(["low_confidence", "random"]),
    tau=st.sampled_from([0.0, 0.8]),
    chunk=st.integers(1, 50),
)
def test_a_row_in_a_batch_commits_what_it_commits_alone(problem, order: str, tau: float, chunk: int) -> None:
    rows, places = problem
    law, V = Law(8, tau, order), 13
    table = torch.randn(len(rows), 31, V, generator=torch.Generator().manual_seed(1))
    seeds, steps, quotas = (torch.tensor(column) for column in zip(*rows, strict=True))

    def run(which: list[int], chunk: int) -> list[tuple[int, int, int]]:
        row = torch.tensor([k for k, b in enumerate(which) for _ in places[b]])
        position = torch.tensor([p for b in which for p in places[b]])
        states = table[torch.tensor(which)[row], position]
        w = torch.tensor(which)
        done = denoise_step(states, lambda x: x, row, position, seeds[w], steps[w], quotas[w], law, [0, 5], chunk)
        return list(zip(done.rows.tolist(), done.positions.tolist(), done.tokens.tolist(), strict=True))

    together = run(list(range(len(rows))), chunk)
    for b in range(len(rows)):
        alone = run([b], 128)
        assert [(p, t) for r, p, t in together if r == b] == [(p, t) for _, p, t in alone]
        assert len(alone) == min(rows[b][2], len(places[b]))
        assert all(t not in (0, 5) for _, _, t in alone)
    assert together == sorted(together)


def test_random_order_is_random_and_confident_order_is_not() -> None:
    n, P = 3000, 4
    logits = torch.zeros(n * P, 3)
    logits[2::P, 1] = 9.0  # position 2 of every row is certain
    rows = torch.arange(n).repeat_interleave(P)
    positions = torch.arange(P).repeat(n)
    seeds = torch.arange(n)
    args = (logits, lambda x: x, rows, positions, seeds, seeds * 0, seeds * 0 + 1)
    assert denoise_step(*args, Law(4), []).positions.unique().tolist() == [2]
    counts = torch.bincount(denoise_step(*args, Law(4, order="random"), []).positions, minlength=P)
    assert float(((counts - n / P) ** 2 / (n / P)).sum()) < 16.3  # 3 degrees of freedom, 0.1 %
