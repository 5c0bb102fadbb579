"""The theorem on a language that can be counted: a small grammar q(x|y), a sampler p(x|y) whose law is enumerated, a real model.

27 sentences of three words, four responses. The sampler works as a masked one does: it fills the places in a random order, each
by what it believes of that place at a low temperature, and its belief looks at the word that it has filled last alone. So its law
is near the grammar's and is not the grammar's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from dat_ray.config.training import TrainingConfig
from dat_ray.measures.gaps import clipped, gap_between, least_distance
from dat_ray.models.chat import Encoded
from dat_ray.training.attacked import HarmfulScorer
from dat_ray.training.network import Network

WORDS, RESPONSES, TEMPERATURE = 3, 4, 0.4
SENTENCES = list(itertools.product(range(WORDS), repeat=3))
ORDERS = list(itertools.permutations(range(3)))
KINDS = ("plain", "attacked")
# Of `scores`, which several tests read.
SCORED: list[dict[str, np.ndarray]] = []


class Toy(NamedTuple):
    """The law of responses [4], and of sentences after each, [4, 27], by the grammar and by the sampler."""

    of_responses: np.ndarray
    grammar: np.ndarray
    sampler: np.ndarray


def belief(joint: np.ndarray, place: int, last: tuple[int, int] | None) -> np.ndarray:
    """What the sampler draws a place from: the grammar's law there given one other word, or none, at its temperature."""
    axes = [axis for axis in range(3) if axis != place and (last is None or axis != last[0])]
    table = joint.sum(axis=tuple(axes))
    if last is not None:
        table = table[:, last[1]] if place < last[0] else table[last[1]]
    sharp: np.ndarray = (table / table.sum()) ** (1 / TEMPERATURE)
    return sharp / sharp.sum()


def sampler_law(joint: np.ndarray) -> np.ndarray:
    """Over all orders and all fillings."""
    law = np.zeros(len(SENTENCES))
    for number, sentence in enumerate(SENTENCES):
        for order in ORDERS:
            chance, last = 1.0 / len(ORDERS), None
            for place in order:
                chance *= belief(joint, place, last)[sentence[place]]
                last = (place, sentence[place])
            law[number] += chance
    return law


def draw(joint: np.ndarray, rng: np.random.Generator) -> int:
    """One sentence of the sampler."""
    words, last = [0, 0, 0], None
    for place in ORDERS[rng.integers(len(ORDERS))]:
        words[place] = int(rng.choice(WORDS, p=belief(joint, place, last)))
        last = (place, words[place])
    return SENTENCES.index((words[0], words[1], words[2]))


@pytest.fixture(scope="module")
def grammars() -> np.ndarray:
    """q(x | y) as [4, 3, 3, 3]: a first word, a second by the first, a third by the second and the response."""
    rng = np.random.default_rng(1)
    first, second = rng.dirichlet(np.ones(WORDS), RESPONSES), rng.dirichlet(np.ones(WORDS) / 2, (RESPONSES, WORDS))
    third = rng.dirichlet(np.ones(WORDS) / 2, (RESPONSES, WORDS, WORDS))
    return first[:, :, None, None] * second[:, :, :, None] * third


@pytest.fixture(scope="module")
def toy(grammars: np.ndarray) -> Toy:
    return Toy(
        np.array([0.4, 0.3, 0.2, 0.1]),
        grammars.reshape(RESPONSES, -1),
        np.array([sampler_law(joint) for joint in grammars]),
    )


@pytest.fixture
def scores(
    make_network: Callable[..., Network],
    make_config: Callable[..., TrainingConfig],
    encode: Callable[[list[int], list[int]], Encoded],
) -> list[dict[str, np.ndarray]]:
    """l(x, y) of three models, [4, 27], as it is and under the attack."""
    if SCORED:
        return SCORED
    rows = []
    for response in range(RESPONSES):
        answer = [50 + response, 40 + response, 9]
        for words in SENTENCES:
            user = [10 + words[0], 20 + words[1], 30 + words[2]]
            rows.append((encode(user, answer[: 2 + response % 2]), encode(user, [8, 9])))
    for seed in range(3):
        scored = HarmfulScorer(make_network(seed=seed), make_config()).score(rows)
        SCORED.append({kind: np.array([getattr(one, kind) for one in scored]).reshape(RESPONSES, -1) for kind in KINDS})
    return SCORED


def total_variation(toy: Toy) -> float:
    return float(toy.of_responses @ (0.5 * np.abs(toy.grammar - toy.sampler).sum(axis=1)))


def risk(toy: Toy, law: np.ndarray, values: np.ndarray) -> float:
    return float(toy.of_responses @ (law * values).sum(axis=1))


def clip(values: np.ndarray, bound: float) -> np.ndarray:
    return np.vectorize(lambda value: clipped(value, bound))(values)


def test_the_laws_are_laws_and_the_sampler_draws_by_its_own(toy: Toy, grammars: np.ndarray) -> None:
    for law in (toy.grammar, toy.sampler):
        assert law.sum(axis=1) == pytest.approx(np.ones(RESPONSES))
    assert 0.1 < total_variation(toy) < 0.5
    rng = np.random.default_rng(2)
    seen = np.bincount([draw(grammars[0], rng) for _ in range(4000)], minlength=len(SENTENCES)) / 4000
    # Of 27 cells and 4000 draws the mean distance is about 0.03.
    assert 0.5 * np.abs(seen - toy.sampler[0]).sum() < 0.05
    assert 0.5 * np.abs(seen - toy.grammar[0]).sum() > 0.05


def test_the_bound_holds_for_every_model_and_every_clip(toy: Toy, scores: list[dict[str, np.ndarray]]) -> None:
    distance, gaps, acted = total_variation(toy), [], []
    for of_model in scores:
        for values in of_model.values():
            for bound in (0.5 * np.abs(values).min(), float(np.median(np.abs(values))), 2 * np.abs(values).max()):
                held = clip(values, bound)
                gap = risk(toy, toy.grammar, held) - risk(toy, toy.sampler, held)
                assert abs(gap) <= 2 * bound * distance + 1e-12
                assert least_distance(gap, bound) <= distance + 1e-12
                gaps.append(abs(gap))
                acted.append(float((np.abs(values) > bound).mean()))
    # Where every value is cut to the same end the models cannot be told apart; elsewhere they can.
    assert gaps[0] == pytest.approx(0.0, abs=1e-12)
    assert max(gaps) > 0.05
    assert acted[:3] == [1.0, pytest.approx(0.5, abs=0.02), 0.0]


def test_the_bound_is_reached(toy: Toy) -> None:
    """By the risk that is M where the grammar is likelier, and -M elsewhere: no smaller bound would do."""
    worst = np.where(toy.grammar > toy.sampler, 3.0, -3.0)
    gap = risk(toy, toy.grammar, worst) - risk(toy, toy.sampler, worst)
    assert gap == pytest.approx(2 * 3.0 * total_variation(toy))
    assert least_distance(gap, 3.0) == pytest.approx(total_variation(toy))


@pytest.mark.parametrize("paired", [True, False], ids=["same responses", "other responses"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_holds_the_exact_gap_as_often_as_it_says(
    paired: bool, kind: str, toy: Toy, scores: list[dict[str, np.ndarray]]
) -> None:
    tried = [clip(one[kind], float(np.quantile(np.abs(one[kind]), 0.9))) for one in scores]
    exact, held = max(
        ((risk(toy, toy.grammar, one) - risk(toy, toy.sampler, one), one) for one in tried), key=lambda pair: abs(pair[0])
    )
    assert abs(exact) > 0.05
    rng, behaviors, prompts, inside = np.random.default_rng(5), 40, 3, 0
    estimates = []
    # Welch's degrees of freedom are others each time, and their quantile takes a while.
    repeats = 400 if paired else 100

    def table(law: np.ndarray, responses: np.ndarray) -> dict[str, float]:
        shares = law.cumsum(axis=1)[responses]
        at = (rng.random((len(responses), prompts, 1)) > shares[:, None, :]).sum(axis=2).clip(max=len(SENTENCES) - 1)
        return {f"b{number}": value for number, value in enumerate(held[responses[:, None], at].mean(axis=1))}

    for _ in range(repeats):
        first, other = (rng.choice(RESPONSES, behaviors, p=toy.of_responses) for _ in range(2))
        second = first if paired else other
        found = gap_between([table(toy.sampler, first)], [table(toy.grammar, second)], paired=paired)
        assert found.low is not None
        assert found.high is not None
        assert found.value is not None
        inside += found.low <= exact <= found.high
        estimates.append(found.value)
    # Four standard errors.
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * np.std(estimates) / np.sqrt(repeats))
    assert inside / repeats == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / repeats))
