"""Names as a reader sees them."""

from __future__ import annotations

import pytest

from dat_ray.evaluation.questions import OVER_REFUSAL
from dat_ray.reporting.words import attack_name, differing, variant_name


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("direct", "Direct request"),
        ("prompts", "Ready prompts"),
        ("prompts_rewrites", "Ready prompts (rewrites)"),
        ("prompts_gcg_v2", "Ready prompts (gcg_v2)"),
        (OVER_REFUSAL, "Harmless look-alike"),
        ("somebody.Attack", "somebody.Attack"),
        ("promptsmith", "promptsmith"),
    ],
)
def test_attacks_have_their_titles_and_files_of_prompts_their_names(attack: str, name: str) -> None:
    assert attack_name(attack) == name


def test_a_variant_stands_behind_its_attack() -> None:
    assert variant_name("prompts_rewrites", "past_tense") == "Ready prompts (rewrites): past_tense"
    assert variant_name("prompts_rewrites", "") == "Ready prompts (rewrites): no variant"


def test_what_differs_for_sure_stands_first() -> None:
    assert differing([(False, "a 1%"), (True, "b 9%"), (False, "c 2%")]) == "b 9%; what may be chance: a 1%, c 2%"
    assert differing([(True, "b 9%")]) == "b 9%"
    assert differing([(False, "a 1%")]) == "what may be chance: a 1%"
