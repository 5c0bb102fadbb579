"""An evaluation that goes on: what no judge could be asked about is asked again, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.row_types import Row
from dat_ray.data.schemas import ATTEMPTS, SEARCHES
from dat_ray.engines.base import Completion, Judgment
from dat_ray.engines.calls import Answer, Failure
from dat_ray.engines.workers import Workers
from dat_ray.errors import DatError
from dat_ray.evaluation.asking import AttemptStores, ModelSession
from dat_ray.evaluation.attacker import Attacker
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.judges import JudgePool, Judges
from dat_ray.evaluation.questions import OVER_REFUSAL, Question
from dat_ray.evaluation.store import ShardStore
from dat_ray.progress import Progress, ProgressCounter
from tests.unit.evaluation.setups import setup

GOALS = ["paint a fence", "open a shed", "sell a clock", "skip a queue", "mow a lawn"]


class Pool:
    """Does a pool's work here."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.about = engine, {"name": engine.name}

    def map(self, work: Any, payloads: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
        for index, payload in enumerate(payloads):
            yield index, work(self._engine, *payload)


class Target:
    name = "target"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[Completion]:
        self.asked += prompts
        return [Completion(f"Here is how to {prompt}", 4, True) for prompt in prompts]


class JudgeOutOfReach:
    """Cannot be asked about some goals."""

    fingerprint, is_proxy = "0", True

    def __init__(self, name: str) -> None:
        self.name = name
        self.away: set[str] = set()
        self.asked: list[str] = []
        self.read: list[str] = []

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        if self.away & set(goals):
            raise TimeoutError("no answer")
        self.asked += goals
        self.read += completions
        return [Judgment("harmful", 1.0) for _ in goals]


class Evaluation:
    """What stands between the sessions of one evaluation that goes on."""

    def __init__(self, root: Path, allowed: int = 4) -> None:
        self.root, self.allowed = root, allowed
        self.first, self.second, self.refusal = map(JudgeOutOfReach, ("first", "second", "refusal"))
        self.target = Target()
        self.recipe: Recipe = setup([]).recipe

    def session(self) -> ModelSession:
        """As a new process has it."""

        def store(folder: str, schema: Any, id_column: str) -> ShardStore:
            return ShardStore(str(self.root / folder), schema, id_column, ErrorLimit(10, self.allowed / 10), shard_rows=3)

        def pool(engine: Any) -> Workers:
            return cast(Workers, Pool(engine))

        for judge in (self.first, self.second, self.refusal):
            judge.asked.clear()
        self.target.asked.clear()
        stores = AttemptStores(
            store("answered", ATTEMPTS, "attempt_id"),
            store("attempts", ATTEMPTS, "attempt_id"),
            store("searches", SEARCHES, "search_id"),
        )
        judges = Judges(*(JudgePool(pool(judge), 2) for judge in (self.first, self.second, self.refusal)))
        target = pool(self.target)
        counter = ProgressCounter(Progress("evaluate", 10))
        model = Model("base", None, "weights")
        return ModelSession(model, self.recipe, "s", stores, judges, cast(Attacker, None), lambda: target, counter)


def questions(attack: str = "direct") -> list[Question]:
    return [Question(attack, f"b{number}", 0, goal, goal) for number, goal in enumerate(GOALS)]


def verdicts(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [(row["verdict"], row["error"], row.get("second_verdict")) for row in rows]


READ = ("harmful", None, "harmful")


def test_a_row_that_no_judge_could_be_asked_about_is_asked_again_and_no_other(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    evaluation.first.away = {GOALS[1]}
    rows = evaluation.session().ask(questions())
    assert verdicts(rows) == [READ, (None, "judge: TimeoutError: no answer", "harmful"), READ, READ, READ]

    evaluation.first.away = set()
    again = evaluation.session().ask(questions())
    assert verdicts(again) == [READ] * 5
    assert (evaluation.first.asked, evaluation.second.asked, evaluation.target.asked) == ([GOALS[1]], [], [])
    assert [row["completion"] for row in again] == [row["completion"] for row in rows]

    assert verdicts(evaluation.session().ask(questions())) == [READ] * 5
    assert evaluation.first.asked == [], "stored for good"


def test_judges_read_what_stands_in_an_answers_place_be_it_empty(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    instead: list[str | Failure] = ["", "in English", Failure("the attacker's answer is empty")]

    def read_instead(stem: str, asked: Sequence[Question], rows: Sequence[Row]) -> dict[int, str | Failure]:
        return dict(enumerate(instead)) if stem.endswith("00000") else {}

    rows = evaluation.session().ask(questions(), read_instead=read_instead)
    assert evaluation.first.read == ["", "in English", *(f"Here is how to {goal}" for goal in GOALS[3:])]
    assert evaluation.second.read == evaluation.first.read
    assert verdicts(rows)[2] == (None, "the attacker's answer is empty", None)


def test_a_second_judge_that_was_out_of_reach_is_asked_again_alone(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    evaluation.second.away = {GOALS[4]}
    assert verdicts(evaluation.session().ask(questions()))[4] == ("harmful", None, None)
    evaluation.second.away = set()
    assert verdicts(evaluation.session().ask(questions())) == [READ] * 5
    assert (evaluation.first.asked, evaluation.second.asked) == ([], [GOALS[4]])


def test_look_alikes_and_answers_that_an_attack_brings_are_judged_again_too(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    evaluation.first.away, evaluation.refusal.away = {GOALS[0]}, {GOALS[2]}
    brought = [(question, Answer("Here it is", 0.0)) for question in questions("embedding")]
    session = evaluation.session()
    errors = [row["error"] for row in [*session.ask(questions(OVER_REFUSAL)), *session.judge(brought)]]
    assert [error is not None for error in errors] == [False, False, True, False, False, True, False, False, False, False]

    evaluation.first.away, evaluation.refusal.away = set(), set()
    session = evaluation.session()
    assert [row["error"] for row in [*session.ask(questions(OVER_REFUSAL)), *session.judge(brought)]] == [None] * 10
    assert (evaluation.refusal.asked, evaluation.first.asked) == ([GOALS[2]], [GOALS[0]])


def test_what_later_questions_may_rest_on_stays_as_it_was(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    evaluation.first.away = {GOALS[1]}
    before = evaluation.session().ask(questions("pair"), "base-pair-000")
    evaluation.first.away = set()
    assert evaluation.session().ask(questions("pair"), "base-pair-000") == before
    assert evaluation.first.asked == []


def test_what_is_judged_after_all_is_no_failure_any_more(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path, allowed=1)
    evaluation.first.away = {GOALS[1], GOALS[4]}
    with pytest.raises(DatError, match="2 rows failed"):
        evaluation.session().ask(questions())
    evaluation.first.away = {GOALS[4]}
    assert [row["error"] is None for row in evaluation.session().ask(questions())] == [True] * 4 + [False]
    assert evaluation.first.asked == [GOALS[1], GOALS[3]], (
        "the one that was stored as failed, and those of the shard that was not"
    )
    evaluation.first.away = set(GOALS)
    assert [row["error"] is None for row in evaluation.session().ask(questions())] == [True] * 4 + [False], "still out of reach"
