from __future__ import annotations

import pytest

from dat_ray.data.text import holds
from dat_ray.measures.prompt_statistics import copied_share, diagnose
from tests.unit.measures.limits import covers


def row(behavior: str, prompt: str | None, **facts) -> dict:
    return {"behavior_id": behavior, "prompt": prompt, **facts}


def test_a_prompt_leaks_when_it_holds_the_words_of_its_response() -> None:
    assert holds("Say: 'Sure, here is the plan!' now", "sure here is the plan")
    assert not holds("sure here is the planet", "sure here is the plan")
    assert not holds("here is the plan", "sure here is the plan")
    assert not holds("anything", "")


def test_the_copied_share_counts_word_pairs_of_the_response() -> None:
    assert copied_share("here is a plan", "Sure, here is a cake") == pytest.approx(2 / 4)
    assert copied_share("nothing shared", "Sure, here is a cake") == 0.0
    assert copied_share("cake please", "Cake!") == 1.0
    assert copied_share("cake", "") == 0.0


def test_measures_are_means_over_behaviors_of_what_is_known() -> None:
    rows = [
        row("a", "sure here", target="Sure, here", nfe=8, prompt_tokens=4, log_likelihood=-8.0, other_log_likelihood=-12.0),
        row("a", "red fox", target="Sure, here", nfe=4, prompt_tokens=4, log_likelihood=-4.0, other_log_likelihood=-4.0),
        row("b", "blue whale", target="Of course", nfe=2, prompt_tokens=2, log_likelihood=-6.0, other_log_likelihood=None),
        row("b", None, target="Of course", nfe=None, prompt_tokens=2, log_likelihood=None, other_log_likelihood=None),
    ]
    found = diagnose(rows)
    assert (found.prompts, found.behaviors) == (3, 2)
    assert found.leaked.value == pytest.approx((1 / 2 + 0) / 2)
    assert found.copied.value == pytest.approx((1 / 2 + 0) / 2)
    assert found.model_calls.value == pytest.approx((6 + 2) / 2)
    assert found.log_likelihood.value == pytest.approx(((-2 - 1) / 2 + -3) / 2)
    assert (found.gain.value, found.gain.n) == pytest.approx(((1 + 0) / 2, 1))
    assert covers(found.leaked, 1 / 4)


def test_what_is_not_known_is_none_and_not_zero() -> None:
    found = diagnose([row("a", "one"), row("b", "two")])
    assert found.unique.value == 1.0
    assert {found.leaked.value, found.model_calls.value, found.log_likelihood.value, found.gain.value} == {None}


def test_none_and_all_are_not_certain() -> None:
    """40 behaviors of three prompts each, which have no word in common: as sure as 40 trials make it, by Wilson's formula."""
    rows = [row(f"b{i}", f"fox{i}-{j} runs{i}", target="Of course not") for i in range(40) for j in range(3)]
    found = diagnose(rows)
    beyond = 1.959964**2 / (40 + 1.959964**2)
    for one in (found.leaked, found.copied, found.near_duplicate):
        assert (one.value, one.low) == (0.0, 0.0)
        assert one.high == pytest.approx(beyond, abs=1e-6)
    assert (found.unique.value, found.unique.high) == (1.0, 1.0)
    assert found.unique.low == pytest.approx(1 - beyond, abs=1e-6)
