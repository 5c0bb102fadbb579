from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dat_ray.engines.base import Completion, Judgment
from dat_ray.engines.calls import (
    Completed,
    CompletionCall,
    Failure,
    JudgeCall,
    LikelihoodCall,
    call_isolated,
    complete,
    judge,
    logprob,
)
from dat_ray.errors import DatError, InputError


def upper(batch: Sequence[str]) -> list[str]:
    if "bad" in batch:
        raise RuntimeError("cannot\nread it")
    return [item.upper() for item in batch]


def test_a_bad_row_costs_itself_and_keeps_its_place() -> None:
    failure = Failure("RuntimeError: cannot read it")
    assert call_isolated(upper, ["a", "bad", "c", "d", "e"], 3) == ["A", failure, "C", "D", "E"]


def test_batches_have_the_given_size() -> None:
    sizes: list[int] = []

    def record(batch: Sequence[int]) -> Sequence[int]:
        sizes.append(len(batch))
        return batch

    assert call_isolated(record, list(range(7)), 3) == list(range(7))
    assert sizes == [3, 3, 1]
    assert call_isolated(record, [], 3) == []


def test_fewer_answers_than_questions_stop_the_stage() -> None:
    with pytest.raises(DatError, match="gave 1 answers to 2 rows"):
        call_isolated(lambda batch: batch[:1], ["a", "b"], 2)


def test_a_dead_engine_is_not_a_failed_row() -> None:
    class EngineDeadError(Exception):
        pass

    def dead(batch: Sequence[str]) -> list[str]:
        raise EngineDeadError("gone")

    with pytest.raises(DatError, match="cannot go on"):
        call_isolated(dead, ["a", "b"], 2)


class Target:
    name = "echo"

    def complete(self, prompts: Sequence[str], max_new_tokens: int, *_: Any, **__: Any) -> list[Completion]:
        return [Completion(text, 1, True) for text in upper(prompts)]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [-len(prompt) - len(response) / 10 for prompt, response in zip(prompts, responses, strict=True)]


def test_completions_carry_their_share_of_the_batch_time_or_their_error() -> None:
    good, bad = complete(Target(), CompletionCall(["hi", "bad"], 8, 2))
    assert (good.text, good.error) == ("HI", None)
    assert good.seconds > 0
    assert (bad.text, bad.error) == (None, "RuntimeError: cannot read it")


def test_pairs_reach_the_engine_side_by_side() -> None:
    assert logprob(Target(), LikelihoodCall([("aa", "b"), ("a", "bbb")], 2)) == [pytest.approx(-2.1), pytest.approx(-1.3)]


def test_the_judge_sees_goal_prompt_and_completion() -> None:
    class Judge:
        name, fingerprint, is_proxy = "j", "f", True
        deviations: Sequence[str] = ()

        def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
            assert (goals, prompts, completions) == (["g1", "g2"], ["p1", "p2"], ["c1", "c2"])
            return [Judgment("harmful", 1.0), Judgment("unparsed", None)]

    found = judge(Judge(), JudgeCall([Completed("g1", "p1", "c1"), Completed("g2", "p2", "c2")], 8))
    assert found == [Judgment("harmful", 1.0), Judgment("unparsed", None)]
    assert judge(Judge(), JudgeCall([], 8)) == []


def test_what_an_attacker_has_no_room_for_names_the_attacker() -> None:
    class Short:
        def complete(self, prompts: Sequence[str], tokens: int) -> list[Completion]:
            raise InputError("target.max_model_len", 64, "a prompt takes 99 tokens: raise it")

    engine: Any = Short()
    for role, field in (("target", "target"), ("attacker", "evaluation.attacker")):
        [answer] = complete(engine, CompletionCall(["a"], 4, 8, role=role))
        assert answer.error == f"InputError: {field}.max_model_len = 64: a prompt takes 99 tokens: raise it"
