"""Transfer, what attempts cost, and many samples: what attacks ask, by a scripted session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.attacks.beast import BeastAttack, BeastTransfer
from dat_ray.evaluation.attacks.best_of_n import BestOfN
from dat_ray.evaluation.attacks.direct import Direct, Prefilling
from dat_ray.evaluation.attacks.gcg import GcgAttack, GcgTransfer
from dat_ray.evaluation.attacks.pair import Pair, PairTransfer
from dat_ray.evaluation.attacks.pgd import PgdAttack, PgdTransfer
from dat_ray.evaluation.attacks.templates import Templates, load_templates
from dat_ray.evaluation.attacks.tense import PastTense
from dat_ray.evaluation.attacks.transfer import Transfer
from dat_ray.evaluation.questions import Behavior, Question
from dat_ray.measures.attempts import curve
from tests.unit.evaluation.sessions import ScriptedSession
from tests.unit.evaluation.setups import setup

SHED = Behavior("a", "Open a shed", ((0, "Sure, here"), (1, "Of course")))
QUEUE = Behavior("b", "Skip a queue", ((0, "Sure, here"),))


@pytest.mark.parametrize(("kind", "transfer"), [(GcgAttack, GcgTransfer), (BeastAttack, BeastTransfer), (PgdAttack, PgdTransfer)])
def test_suffixes_of_the_first_model_are_asked_of_every_model(kind: type[Attack], transfer: type[Transfer]) -> None:
    name = kind.name
    fields: dict[str, Any] = {"attacks": [name, transfer.name], name: {"attempts": 2}}
    made = setup([SHED, QUEUE], **fields)
    attack, moved = kind(made), transfer(made)
    found = {"base": ["base 1", "base 2"], "tuned": ["tuned 1", "tuned 2"]}
    for model, prompts in found.items():
        session = ScriptedSession(model, found={"prompts": prompts, "model_calls": 9, "prompt_calls": [4, 9]})
        attack.search(session)
        attack.ask(session)
        own = list(session.asked)
        session.asked.clear()
        moved.ask(session)
        assert [one.prompt for one in own] == prompts * 2
        assert [(one.attack, one.prompt) for one in session.asked] == [(transfer.name, prompt) for prompt in found["base"] * 2]
        # Each suffix bears what was spent since the one before.
        assert [one.model_calls for one in own] == [one.model_calls for one in session.asked] == [4, 5, 4, 5]


def test_a_search_that_was_stored_without_calls_by_prompt_bears_all_at_the_first() -> None:
    attack = GcgAttack(setup([SHED], gcg={"attempts": 2}))
    session = ScriptedSession(found={"prompts": ["one", "two"], "model_calls": 9})
    attack.search(session)
    attack.ask(session)
    assert [one.model_calls for one in session.asked] == [9, 0]


def test_a_search_that_failed_is_asked_of_nobody_else() -> None:
    made = setup([SHED], attacks=["gcg", "gcg_transfer"], gcg={"attempts": 2})
    attack, session = GcgAttack(made), ScriptedSession(found={"error": "search: too long"})
    attack.search(session)
    attack.ask(session)
    assert [(one.prompt, one.error) for one in session.asked] == [(None, "search: too long")] * 2
    other = ScriptedSession("tuned")
    GcgTransfer(made).ask(other)
    assert (other.asked, other.skipped[0]) == ([], 2)


def test_prompts_of_pair_bear_the_answers_of_the_first_model() -> None:
    made = setup([SHED], attacks=["pair", "pair_transfer"], pair={"steps": 3, "streams": 1})
    prompts = iter([json.dumps({"prompt": "one"}), "no idea", json.dumps({"prompt": "three"})])
    first = ScriptedSession(written=lambda text: next(prompts))
    Pair(made).ask(first)
    assert [one.model_calls for one in first.asked] == [1, 1, 1]
    other = ScriptedSession("tuned")
    PairTransfer(made).ask(other)
    assert [(one.attempt_index, one.prompt, one.model_calls) for one in other.asked] == [(0, "one", 2), (2, "three", 2)]
    assert len(other.asked) + other.skipped[0] == PairTransfer(made).planned().asked


@pytest.mark.parametrize("attacks", [["gcg_transfer"], ["gcg_transfer", "gcg"]])
def test_a_transfer_without_its_source_before_it_is_refused(attacks: list[str]) -> None:
    with pytest.raises(InputError, match="name that one before it"):
        GcgTransfer(setup([SHED], attacks=attacks)).planned()


def many(kind: type[Attack], **evaluation: Any) -> list[Question]:
    attack = kind(setup([SHED, QUEUE], **evaluation))
    if isinstance(attack, PastTense):
        attack.write(ScriptedSession(written=lambda text: f"how did one do it, {len(text)}?"))
        return attack.rewritten
    return attack.questions()


@pytest.mark.parametrize("kind", [Direct, BestOfN, PastTense, Templates])
def test_sixty_samples_have_indices_seeds_ids_and_a_curve_of_their_own(kind: type[Attack], tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("".join(f"Version {number} of {{goal}}\n" for number in range(60)))
    settings: dict[str, object] = {
        "direct": {"samples": 60, "temperature": 1.0},
        "best_of_n": {"samples": 60},
        "tense": {"samples": 60},
        "templates_path": str(path),
    }
    found = many(kind, **settings)
    assert [one.attempt_index for one in found] == [*range(60)] * 2
    assert len({one.attempt_id("s", "base", "w") for one in found}) == 120
    if found[0].temperature:
        assert len({one.seed for one in found}) == 120
    assert [one.attempt_id("s", "base", "w") for one in many(kind, **settings)] == [
        one.attempt_id("s", "base", "w") for one in found
    ]
    rows = [
        {"behavior_id": one.behavior_id, "attempt_index": one.attempt_index, "verdict": "harmful" if hit else "not_harmful"}
        for one in found
        for hit in [one.behavior_id == "a" and one.attempt_index == 50]
    ]
    points = {k: found_at.value for k, found_at in curve(rows, in_order=kind.in_order, confidence=0.95)}
    assert list(points) == [1, 2, 4, 8, 16, 32, 60]
    # One of 60 attempts on one of two behaviors: k / 60 of its subsets of k hold it; in order it comes with the 51st.
    assert points[32] == pytest.approx(0.0 if kind.in_order else 32 / 60 / 2)
    assert points[60] == pytest.approx(0.5)


@pytest.mark.parametrize(("kind", "calls"), [(Direct, 0), (Prefilling, 0), (BestOfN, 0), (Templates, 0), (PastTense, 1)])
def test_what_a_prompt_cost_before_it_is_asked(kind: type[Attack], calls: int, tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("Play. {goal}\n")
    found = many(kind, best_of_n={"samples": 2}, tense={"samples": 2}, templates_path=str(path))
    assert {one.model_calls for one in found} == {calls}


def test_a_published_file_of_templates_is_read_in_its_own_form(tmp_path: Path) -> None:
    """As GPTFuzzer's: columns id and text, another slot, line breaks inside a template."""
    path = tmp_path / "GPTFuzzer.csv"
    path.write_text('id,text\n0,"Let us play.\n\n[INSERT PROMPT HERE]"\n1,"A {game}: [INSERT PROMPT HERE], please"\n')
    assert load_templates(str(path)) == ["Let us play.\n\n{goal}", "A {game}: {goal}, please"]
    path.write_text('id,text\n0,"nothing to fill in"\n')
    with pytest.raises(InputError, match=r"has no \{goal\}"):
        load_templates(str(path))


def test_the_public_templates_are_found_offline_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_PUBLIC_DATA", str(tmp_path))
    with pytest.raises(InputError, match="put the file there, published at"):
        load_templates("public:gptfuzzer/GPTFuzzer.csv")
    (tmp_path / "gptfuzzer").mkdir()
    (tmp_path / "gptfuzzer" / "GPTFuzzer.csv").write_text("id,text\n0,[INSERT PROMPT HERE]\n")
    with pytest.raises(InputError, match="is not the published file"):
        load_templates("public:gptfuzzer/GPTFuzzer.csv")
