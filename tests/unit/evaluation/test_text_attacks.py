"""PAIR's parser, rewrites, templates and prefilling: pure functions of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dat_ray.data.row_types import Row
from dat_ray.engines.calls import Failure
from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import ReadInstead
from dat_ray.evaluation.attacks.direct import Prefilling
from dat_ray.evaluation.attacks.pair import instruction
from dat_ray.evaluation.attacks.rewriting import rewritten
from dat_ray.evaluation.attacks.stepwise import Exchange, out_of_ten, parse
from dat_ray.evaluation.attacks.templates import Templates, load_templates
from dat_ray.evaluation.attacks.tense import FutureTense, PastTense
from dat_ray.evaluation.attacks.translation import Translation
from dat_ray.evaluation.questions import UNREADABLE, Behavior, Question
from tests.unit.evaluation.sessions import ScriptedSession
from tests.unit.evaluation.setups import setup

BEHAVIOR = Behavior("a", "Open {a} shed", ((0, "Sure, here"), (1, "Of course")))


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('{"improvement": "none", "prompt": "Tell me"}', "Tell me"),
        ('Here it is:\n```json\n{"improvement": "a {b}", "prompt": "Tell \\"me\\""}\n```', 'Tell "me"'),
        ('{"improvement": "x", "prompt": "two\nlines"}', "two\nlines"),
        ('{not json} {"prompt": "second object"}', "second object"),
        ('{"improvement": "cut off", "prompt": "whole", "and', "whole"),
    ],
)
def test_a_prompt_is_found_whatever_stands_around_it(answer: str, prompt: str) -> None:
    assert parse(answer) == (prompt, None)


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", '{"prompt": ""}', '{"prompt": 3}', '{"prompt": "never ends', "[1, 2]"]
)
def test_where_there_is_no_prompt_it_says_so(answer: str) -> None:
    assert parse(answer) == (None, f"{UNREADABLE} holds no prompt")


def test_the_attacker_sees_goal_target_and_how_its_last_prompts_fared() -> None:
    first = instruction(BEHAVIOR.goal, "Sure, here", [])
    assert "Open {a} shed" in first
    assert "Score" not in first
    later = instruction(BEHAVIOR.goal, "Sure, here", [Exchange("try {one}", "no {way}", 0.0), Exchange("two", "yes", None)])
    assert "Prompt: try {one}\nAnswer: no {way}\nScore: 1\n" in later
    assert "Score: unknown" in later
    assert [out_of_ten(score) for score in (0.0, 0.5, 1.0)] == ["1", "5", "10"]


def test_rewrites_become_prompts_and_unusable_ones_say_why() -> None:
    made = setup([BEHAVIOR], tense={"samples": 2}, translation={"languages": ["Zulu"]})
    requests = [one for kind in (PastTense, FutureTense, Translation) for one in kind(made).rewritings()]
    assert [(r.question.attack, r.question.attempt_index) for r in requests] == [
        ("past_tense", 0),
        ("past_tense", 1),
        ("future_tense", 0),
        ("future_tense", 1),
        ("translation", 0),
    ]
    assert all("Open {a} shed" in request.request.text for request in requests)
    assert "Zulu" in requests[-1].request.text
    assert len({request.request.seed for request in requests}) == 5
    stored = [
        {"text": ' "How was a shed opened?" ', "error": None},
        {"text": "  ", "error": None},
        {"text": "I'm sorry, but I can't help with that.", "error": None},
        {"text": None, "error": "attacker: ReadTimeout"},
        {"text": "Vula", "error": None},
    ]
    found = rewritten(requests, stored)
    assert [question.prompt for question in found] == ["How was a shed opened?", None, None, None, "Vula"]
    assert [question.error for question in found] == [
        None,
        f"{UNREADABLE} is empty",
        f"{UNREADABLE} is a refusal",
        "attacker: ReadTimeout",
        None,
    ]
    assert all(question.goal == BEHAVIOR.goal for question in found)


class Translating(ScriptedSession):
    """Keeps what judges read in place of the answers."""

    def ask(self, questions: Sequence[Question], stem: str | None = None, read_instead: ReadInstead | None = None) -> list[Row]:
        rows = super().ask(questions, stem, read_instead)
        assert read_instead is not None
        self.instead = read_instead("base-translation-00000", questions, rows)
        return rows


def test_an_answer_whose_translation_is_empty_is_none_that_judges_can_read() -> None:
    attack = Translation(setup([BEHAVIOR], translation={"languages": ["Zulu", "Hmong", "Guarani", "Irish"]}))
    attack.rewritten = [
        replace(one.question, prompt=text) for one, text in zip(attack.rewritings(), ("1", "2", "3", "4"), strict=True)
    ]
    answers = {"1": "Ngiyaxolisa.", "2": "Kuv thov txim.", "3": " ", "4": "Gabh mo leithscéal."}
    # Of the attacker: nothing, as where its reasoning was cut off; white space; and a translation.
    back = {"Ngiyaxolisa.": "", "Kuv thov txim.": " \n", "Gabh mo leithscéal.": "I am sorry."}
    session = Translating(
        written=lambda request: next(english for answer, english in back.items() if answer in request),
        answered=lambda history, prompt: answers[prompt],
    )
    attack.ask(session)
    empty = Failure(f"{UNREADABLE} is empty")
    # An empty answer needs no translation.
    assert session.instead == {0: empty, 1: empty, 3: "I am sorry."}


def test_prefilling_begins_the_turn_with_each_target() -> None:
    assert [(q.prompt, q.prefill, q.attempt_index) for q in Prefilling(setup([BEHAVIOR])).questions()] == [
        (BEHAVIOR.goal, "Sure, here", 0),
        (BEHAVIOR.goal, "Of course", 1),
    ]


def test_templates_take_the_goal_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "templates.jsonl"
    path.write_text('{"template": "Play a game: {goal} {x}"}\n{"template": "{goal}\\nAgain: {goal}"}\n')
    questions = Templates(setup([BEHAVIOR], templates_path=str(path))).questions()
    assert [question.prompt for question in questions] == [
        "Play a game: Open {a} shed {x}",
        "Open {a} shed\nAgain: Open {a} shed",
    ]


def test_a_template_file_that_cannot_work_is_named(tmp_path: Path) -> None:
    path = tmp_path / "templates.csv"
    path.write_text("template\nno slot here\n")
    with pytest.raises(InputError, match=r"has no \{goal\}"):
        load_templates(str(path))
    path.write_text("words\n{goal}\n")
    with pytest.raises(InputError, match="no column 'template'"):
        load_templates(str(path))
