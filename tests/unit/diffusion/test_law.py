from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dat_ray.diffusion.law import Law, Proposal, StepKeys, choose, hide_condition, propose, ranks, to_refine

NO_BAN = torch.tensor([], dtype=torch.int64)


@given(rows=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=5))
def test_ranks_are_those_of_a_stable_sort_of_each_row(rows: list[list[int]]) -> None:
    owners = torch.tensor([b for b, row in enumerate(rows) for _ in row])
    keys = torch.tensor([key for row in rows for key in row])
    expected = [sorted(range(len(row)), key=lambda i: (row[i], i)).index(i) for row in rows for i in range(len(row))]
    assert ranks(keys, owners).tolist() == expected


def hide(
    lengths: list[int], spans: list[tuple[int, int]], rows_of_each: int, step: int = 0, most: list[int] | None = None
) -> list[torch.Tensor]:
    """Where `hide_condition` put MASK (99), for each length: (rows_of_each, L)."""
    n = rows_of_each
    sizes = torch.tensor(lengths).repeat_interleave(n)
    rows = torch.arange(len(sizes)).repeat_interleave(sizes)
    positions = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows]
    bounds = torch.tensor(spans).repeat_interleave(n, 0)[rows]
    condition = (positions >= bounds[:, 0]) & (positions < bounds[:, 1])
    ids = positions % 50
    seeds = torch.arange(n).repeat(len(lengths))
    largest = sizes if most is None else torch.tensor(most).repeat_interleave(n)
    hidden = hide_condition(ids, condition, rows, positions, largest, StepKeys(seeds, torch.full_like(seeds, step)), 99)
    changed = hidden == 99
    assert torch.equal(hidden[~changed], ids[~changed])
    assert not (changed & ~condition).any()
    return [part.view(n, -1) for part in changed.split([n * length for length in lengths])]


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


def test_a_smaller_share_hides_a_smaller_part() -> None:
    """Of ten positions at most four, two and a half on average: each of the six of the condition in a quarter of the rows."""
    n, L, most = 20_000, 10, 4
    [hidden] = hide([L], [(4, 10)], n, most=[most])
    assert int(hidden.sum(1).max()) == most
    assert torch.allclose(hidden[:, 4:].double().mean(0), torch.full((6,), 0.25).double(), atol=4 * (0.1875 / n) ** 0.5)
    counts = torch.bincount(hide([L], [(0, L)], n, most=[most])[0].sum(1), minlength=L + 1)
    assert float(((counts[1:5] - n / most) ** 2 / (n / most)).sum()) < 16.3  # 3 degrees of freedom, 0.1 %
    assert counts[0] == counts[5:].sum() == 0


def test_hiding_ignores_batch_mates() -> None:
    ragged = hide([6, 12], [(2, 6), (5, 12)], 500)
    assert torch.equal(ragged[0], hide([6], [(2, 6)], 500)[0])
    assert not torch.equal(ragged[1], hide([12], [(5, 12)], 500, step=1)[0])


def tokens_of(logits: torch.Tensor, law: Law, n: int, banned: torch.Tensor = NO_BAN) -> torch.Tensor:
    """Draws for n seeds from one row of logits (V,)."""
    seeds = torch.arange(n)
    return propose(logits.repeat(n, 1), law, StepKeys(seeds, seeds * 0), seeds * 0 + 3, banned).tokens


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * len(tokens)
    counts = torch.bincount(tokens, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    at = expected > 0
    return float(((counts[at] - expected[at]) ** 2 / expected[at]).sum())


def test_draws_follow_the_tempered_softmax_over_allowed_tokens() -> None:
    tau, logits = 0.6, torch.tensor([1.0, 0.0, -0.5, 0.7, 3.0])
    allowed = torch.cat([(logits[:4] / tau).softmax(0), torch.zeros(1)])
    assert chi_square(tokens_of(logits, Law(8, tau), 15_000, torch.tensor([4])), allowed) < 16.3  # 3 d.f., 0.1 %


def test_draws_follow_the_softmax_across_groups_of_ids() -> None:
    """The draw has two moves, a group of 256 ids and an id of it: their product must be the softmax."""
    logits = torch.full((700,), -torch.inf)
    places = torch.tensor([0, 3, 255, 256, 300, 511, 512, 699])  # of three groups, the last one partly filled
    logits[places] = torch.tensor([1.0, 0.2, -0.4, 0.9, 0.9, -1.0, 0.0, 1.4])
    tokens = tokens_of(logits, Law(8, 0.8), 15_000, torch.tensor([300]))
    logits[300] = -torch.inf
    assert chi_square(tokens, (logits / 0.8).softmax(0)) < 22.5  # 6 d.f., 0.1 %


def test_confidence_is_untempered_and_its_normalizer_includes_banned_tokens() -> None:
    logits = torch.tensor([[2.0, 1.0, 4.0]])
    one = torch.tensor([1])
    for tau in (0.0, 1.0, 5.0):
        got = propose(logits.clone(), Law(8, tau), StepKeys(one, one), one, torch.tensor([2]))
        assert got.tokens.item() in (0, 1)
        assert got.logprobs.item() == pytest.approx(logits.log_softmax(1)[0, got.tokens].item(), abs=1e-6)
        assert got.entropies is None


def test_a_banned_token_of_any_size_overflows_nothing() -> None:
    logits, one = torch.tensor([[2.0, 1.0, 400.0]]), torch.tensor([1])
    for tau in (0.0, 1.0):
        got = propose(logits.clone(), Law(8, tau), StepKeys(one, one), one, torch.tensor([2]))
        assert got.logprobs.item() == pytest.approx(logits[0, got.tokens].item() - 400.0, abs=1e-3)


def test_entropy_is_that_of_the_whole_softmax() -> None:
    logits, one = torch.tensor([[2.0, 1.0, 4.0]]), torch.tensor([1])
    p = logits.softmax(1)
    got = propose(logits.clone(), Law(8, entropy_bound=0.1), StepKeys(one, one), one, torch.tensor([2]))
    assert got.entropies is not None
    assert got.entropies.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)


def test_temperature_scales_the_noise_unless_the_reference_is_asked_for() -> None:
    # As tau goes to 0 the draw becomes the argmax; the reference's untempered form keeps the noise of tau = 1.
    logits = torch.tensor([1.0, 0.9, 0.0])
    assert tokens_of(logits, Law(8, 1e-3), 500).unique().tolist() == [0]
    warm = tokens_of(logits, Law(8, 1.0), 500)
    assert warm.unique().tolist() == [0, 1, 2]
    assert torch.equal(tokens_of(logits, Law(8, 1e-3, tempered=False), 500), warm)


def choice(law: Law, logprobs: list[float], least: list[int], rows: list[int], entropies: list[float] | None = None):
    owners = torch.tensor(rows)
    positions = torch.arange(len(rows))
    proposal = Proposal(positions, torch.tensor(logprobs), None if entropies is None else torch.tensor(entropies))
    seeds = torch.arange(len(least))
    return choose(owners, positions, proposal, torch.tensor(least), StepKeys(seeds, seeds * 0), law).nonzero()[:, 0].tolist()


def test_choose_takes_the_best_of_each_row_and_the_left_one_of_equals() -> None:
    logprobs = [-0.9, -0.1, -0.9, -0.5, -2.0, -0.5]
    assert choice(Law(4), logprobs, [2, 1], [0, 0, 0, 1, 1, 1]) == [0, 1, 3]


def test_choose_takes_whatever_passes_the_threshold_and_never_less_than_its_share() -> None:
    logprobs = [math.log(p) for p in (0.91, 0.5, 0.9001, 0.2, 0.3, 0.25)]
    rows = [0, 0, 0, 1, 1, 1]
    assert choice(Law(4, threshold=0.9), logprobs, [1, 1], rows) == [0, 2, 4]
    assert choice(Law(4, threshold=0.9), logprobs, [3, 2], rows) == [0, 1, 2, 4, 5]


def test_choose_stops_where_entropies_but_the_largest_exceed_the_bound() -> None:
    # In order of confidence 0.1, 0.3, 0.2, 2.0: sums less their maximum are 0, 0.1, 0.3, 0.6.
    logprobs, entropies, rows = [-0.1, -0.4, -0.2, -0.3, -0.1], [0.1, 2.0, 0.3, 0.2, 9.0], [0, 0, 0, 0, 1]
    for bound, expected in ((0.0, [0, 4]), (0.15, [0, 2, 4]), (0.35, [0, 2, 3, 4]), (0.65, [0, 1, 2, 3, 4])):
        assert choice(Law(4, entropy_bound=bound), logprobs, [1, 1], rows, entropies) == expected


def test_of_neighbors_that_drew_one_token_all_but_the_best_wait_unless_the_share_asks_for_them() -> None:
    # Positions 0 to 3 of the first row drew 7 7 5 7, those of the second 7 7; the last 7 of the first row stands apart.
    rows, positions = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 5, 6, 7, 8, 9])
    proposal = Proposal(torch.tensor([7, 7, 5, 7, 7, 7]), torch.tensor([-0.2, -0.1, -0.9, -0.3, -0.5, -0.5]))
    none = torch.zeros(2, dtype=torch.int64)

    def chosen(law: Law, *least: int) -> list[int]:
        return choose(rows, positions, proposal, torch.tensor(least), StepKeys(none, none), law).nonzero()[:, 0].tolist()

    plain, wait = Law(4), Law(4, no_repeats=True)
    assert chosen(plain, 2, 1) == [0, 1, 4]
    assert chosen(wait, 2, 1) == [1, 3, 4]
    assert chosen(wait, 3, 1) == [1, 2, 3, 4]
    assert chosen(wait, 4, 2) == [0, 1, 2, 3, 4, 5]  # the last step of both
    assert chosen(Law(4, threshold=0.6), 1, 1) == [0, 1, 3, 4, 5]
    assert chosen(Law(4, threshold=0.6, no_repeats=True), 1, 1) == [1, 3, 4]
    # A gap of one written token is no neighborhood.
    positions[1:4] += 1
    assert chosen(wait, 2, 1) == [0, 1, 4]


def test_masks_that_wait_are_no_part_of_the_list_within_an_entropy_bound() -> None:
    rows, none = torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    proposal = Proposal(torch.tensor([7, 7, 5]), torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([0.1, 0.1, 0.1]))
    for no_repeats, expected in ((False, [0, 1, 2]), (True, [0, 2])):
        law = Law(4, entropy_bound=9.0, no_repeats=no_repeats)
        assert choose(rows, torch.arange(3), proposal, none + 1, StepKeys(none, none), law).nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_neighbor_s_token_is_not_drawn_and_stays_in_the_normalizer(temperature: float) -> None:
    logits, seeds = torch.tensor([[2.0, 1.0, 9.0, 3.0]]).repeat(400, 1), torch.arange(400)
    keys = StepKeys(seeds, seeds * 0)
    # Neighbors' tokens, banned ones, and the most probable of the others.
    cases: list[tuple[list[int], list[int], int]] = [([2, 3], [], 0), ([2, 2], [3], 0), ([3, 3], [3], 2)]
    for neighbors, banned, best in cases:
        beside = torch.tensor([neighbors]).repeat(400, 1)
        law = Law(8, temperature, no_repeats=True)
        got = propose(logits.clone(), law, keys, seeds * 0, torch.tensor(banned, dtype=torch.int64), beside)
        drawn = set(got.tokens.tolist())
        assert best in drawn
        assert not drawn & {*neighbors, *banned}
        assert temperature or drawn == {best}
        expected = logits.log_softmax(1).gather(1, got.tokens[:, None])[:, 0]
        assert torch.allclose(got.logprobs, expected, atol=1e-5)


def test_random_order_is_random() -> None:
    n, P = 3000, 4
    rows = torch.arange(n).repeat_interleave(P)
    positions = torch.arange(P).repeat(n)
    logprobs = torch.zeros(n * P).index_fill(0, (positions == 2).nonzero()[:, 0], -9.0)
    seeds = torch.arange(n)
    proposal = Proposal(positions, logprobs)
    chosen = choose(rows, positions, proposal, seeds * 0 + 1, StepKeys(seeds, seeds * 0), Law(4, order="random"))
    assert chi_square(positions[chosen], torch.full((P,), 1 / P)) < 16.3  # 3 degrees of freedom, 0.1 %


def test_refinement_takes_the_least_confident_or_any() -> None:
    n = 3000
    rows, positions = torch.arange(n).repeat_interleave(4), torch.arange(4).repeat(n)
    logprobs = torch.tensor([-0.1, -0.9, -0.9001, -0.2]).repeat(n)
    seeds = torch.arange(n)

    def taken(rule, count: int) -> torch.Tensor:
        law = Law(9, refine=rule)
        return positions[to_refine(logprobs, rows, positions, seeds * 0 + count, StepKeys(seeds, seeds * 0), law)]

    assert taken("low_confidence", 1).unique().tolist() == [1]  # of equals the left one
    assert taken("low_confidence", 3).unique().tolist() == [1, 2, 3]
    assert taken("random", 0).tolist() == []
    assert chi_square(taken("random", 1), torch.full((4,), 0.25)) < 16.3  # 3 degrees of freedom, 0.1 %
