from __future__ import annotations

import math
import random

import pytest
import torch

from dat_ray.diffusion import counter

MASK = (1 << 64) - 1


def splitmix_chain(*words: int) -> int:
    """The documented hash on Python integers."""
    h = 0
    for word in words:
        h = ((h ^ (word & MASK)) + 0x9E3779B97F4A7C15) & MASK
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
        h ^= h >> 31
    return h


def test_hash_is_exact_for_every_kind_of_word() -> None:
    rng = random.Random(0)
    words = [0, 1, -1, 2**63 - 1, -(2**63), *[rng.randrange(-(2**63), 2**63) for _ in range(200)]]
    for first, second in zip(words, reversed(words), strict=True):
        got = int(counter.hash_words(torch.tensor(first), second, 7)) & MASK
        assert got == splitmix_chain(first, second, 7)


def test_first_value_is_that_of_splitmix64_with_seed_0() -> None:
    # First output of the published generator seeded with 0 (its state advances by the golden ratio, then is mixed).
    assert int(counter.hash_words(torch.tensor(0))) & MASK == 0xE220A8397B1DCDAF


def test_draws_do_not_depend_on_what_they_are_drawn_with() -> None:
    seeds, places = torch.tensor([5, 9, 2**62]), torch.arange(11)
    table = counter.uniform(seeds[:, None], 3, places[None])
    assert table[1, 4] == counter.uniform(torch.tensor(9), 3, torch.tensor(4))
    assert torch.equal(table.flip(0), counter.uniform(seeds.flip(0)[:, None], 3, places[None]))
    assert len(table.unique()) == 33


@pytest.mark.parametrize("bits", [0, -1])
def test_extreme_hashes_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(counter, "hash_words", lambda *_: torch.tensor([bits]))
    assert 0.0 < float(counter.uniform(0)) < 1.0
    assert math.isfinite(float(counter.gumbel(0)))


def test_uniform_fills_cells_evenly() -> None:
    draws = counter.uniform(7, 1, torch.arange(100_000))
    counts = torch.histc(draws, 50, 0.0, 1.0)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert 24.0 < chi_square < 85.4  # 49 degrees of freedom, 0.1 % in each tail


def test_neighboring_counters_are_uncorrelated() -> None:
    n = 50_000
    a, b = (counter.uniform(0, 0, torch.arange(k, n + k)) for k in (0, 1))
    other_seed = counter.uniform(1, 0, torch.arange(n))
    for x in (b, other_seed):
        assert abs(float(torch.corrcoef(torch.stack([a, x]))[0, 1])) < 4 / math.sqrt(n)


def test_gumbel_has_the_gumbel_distribution() -> None:
    draws = counter.gumbel(3, torch.arange(100_000)).double()
    assert draws.dtype == torch.float64
    assert float(draws.mean()) == pytest.approx(0.577216, abs=0.013)
    assert float(draws.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)
    for q in (-1.0, 0.0, 1.0, 3.0, 7.0):
        p = math.exp(-math.exp(-q))
        assert float((draws <= q).double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 1e5) + 1e-5)


def test_integer_below_covers_its_range_evenly() -> None:
    draws = counter.integer_below(torch.tensor(7), 0, torch.arange(70_000))
    counts = torch.bincount(draws, minlength=7)
    assert len(counts) == 7
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 22.5  # 6 degrees of freedom, 0.1 %


def test_library_seeds_are_non_negative_and_distinct() -> None:
    seeds = [counter.seed_from(1, k) for k in range(1000)]
    assert min(seeds) >= 0
    assert len(set(seeds)) == 1000
