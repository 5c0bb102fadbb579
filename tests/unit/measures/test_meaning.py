"""Mean pairwise cosines against pairs written out, and texts that are near to others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dat_ray.measures.meaning import meaning_diversity, neighbors
from tests.unit.measures.limits import covers


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def behaviors(counts: list[int], seed: int = 0, width: int = 7) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"b{i}": unit(random.normal(size=(n, width)) + 2 * random.normal(size=width)) for i, n in enumerate(counts)}


def plain_mean(vectors: np.ndarray) -> float:
    return float(np.mean([float(a @ b) for a, b in itertools.combinations(vectors.astype(np.float64), 2)]))


@pytest.mark.parametrize("counts", [[3, 1, 4, 2], [1, 1, 1], [5, 2], [2, 0, 3]])
def test_means_are_those_of_all_pairs(counts: list[int]) -> None:
    vectors = behaviors(counts)
    found = meaning_diversity(vectors)
    together = np.concatenate([one for one in vectors.values() if len(one)])
    assert found.prompts == sum(counts)
    assert found.pairwise.value == pytest.approx(plain_mean(together), abs=1e-6)
    assert found.pairwise.n == sum(count > 0 for count in counts)
    if found.pairwise.value is not None:
        assert covers(found.pairwise, found.pairwise.value)
    pairs = [plain_mean(one) for one in vectors.values() if len(one) > 1]
    if not pairs:
        assert found.within.value is None
        return
    assert found.within.value == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert found.within.n == len(pairs)


def test_limits_cover_what_many_behaviors_have() -> None:
    """Behaviors are drawn from one world: of 200 studies of 12 the limits hold its mean in about 95%."""
    world = np.concatenate(list(behaviors([1] * 4000, seed=9).values()))
    truth = float((np.square(world.astype(np.float64).sum(0)).sum() - len(world)) / (len(world) * (len(world) - 1)))
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        drawn = {str(i): world[at : at + 1] for i, at in enumerate(random.choice(len(world), 12, replace=False))}
        found = meaning_diversity(drawn, resamples=300).pairwise
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 170 <= held <= 200


def test_few_prompts_have_no_limits_and_none_no_mean() -> None:
    alone = meaning_diversity(behaviors([3]))
    assert alone.pairwise.value == alone.within.value
    assert (alone.pairwise.low, alone.pairwise.high) == (None, None)
    assert meaning_diversity(behaviors([1])).pairwise.value is None
    assert meaning_diversity({}).prompts == 0


def test_the_order_of_behaviors_changes_nothing() -> None:
    vectors = behaviors([3, 2, 4])
    assert meaning_diversity(dict(reversed(vectors.items()))) == meaning_diversity(vectors)


def test_neighbors_are_the_nearest_others_and_the_nearest_pair_comes_first() -> None:
    vectors = unit(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    others = unit(np.array([[1.0, 0.1], [-1.0, 0.0]]))
    found = neighbors(["east", "north", "between"], vectors, ["a", "b"], others)
    assert [(pair.text, pair.other) for pair in found] == [("east", "a"), ("between", "a"), ("north", "a")]
    assert found[0].cosine == pytest.approx(1 / 1.01**0.5)
    assert found[2].cosine == pytest.approx(0.1 / 1.01**0.5)
    assert neighbors([], vectors[:0], ["a", "b"], others) == []
    assert neighbors(["east"], vectors[:1], [], others[:0]) == []
