"""The target's and the judge's actors: what a row gets where there is no prompt, no answer or no verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from dat_ray.config.schema import Recipe
from dat_ray.engines.base import Completion, Judgment
from dat_ray.engines.roles import Engines
from dat_ray.errors import InputError
from dat_ray.evaluation.judges import JudgePool, Judges
from dat_ray.generation.actors import SIMILARITIES, EncoderActor, JudgeActor, RemoteLedger, TargetActor
from dat_ray.generation.goals import Goals


class Scored:
    """Answers with the prompt, and gives a prompt's length as its log-probability."""

    name = "scored"

    def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[Completion]:
        return [Completion(f"to {prompt}", 1, True) for prompt in prompts]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if not all(prompts):
            raise InputError("prompt", "", "is empty")
        return [-float(len(prompt)) for prompt in prompts]


def tiny(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            **sections,
            "name": "t",
            "behaviors": {"path": "x", "heldout": {"path": "x"}},
            "sampler": {"model": "x"},
            "target": {"model": "m"},
            "training": {"retain_rows": 0, "retain_weight": 0.0},
        }
    )


def test_a_prompt_that_the_sampler_left_empty_is_answered_and_not_scored() -> None:
    actor = TargetActor(tiny(), None, None, None)
    actor.engine = Scored()
    found = actor.work([{"prompt": prompt, "target": "Sure"} for prompt in ("one", "", "three")])
    assert [row["completion"] for row in found] == ["to one", "to ", "to three"]
    assert [row["target_logprob"] for row in found] == [-3.0, None, -5.0]


def test_an_answer_that_could_not_be_had_is_the_rows_error_and_not_scored() -> None:
    class Away(Scored):
        def complete(self, prompts: Sequence[str], max_new_tokens: int) -> list[Completion]:
            return [
                Completion("", 0, False, "status 503") if prompt == "two" else Completion("yes", 1, True) for prompt in prompts
            ]

        def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
            assert "two" not in prompts
            return super().logprob(prompts, responses)

    actor = TargetActor(tiny(), None, None, None)
    actor.engine = Away()
    found = actor.work([{"prompt": prompt, "target": "Sure"} for prompt in ("one", "two", "three")])
    assert found[1] == {"error": "target: status 503"}
    assert [row["target_logprob"] for row in (found[0], found[2])] == [-3.0, -5.0]


def test_a_response_is_scored_once_under_the_neutral_prompt() -> None:
    class Counting(Scored):
        asked: ClassVar[list[tuple[str, str]]] = []

        def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
            self.asked.extend(zip(prompts, responses, strict=True))
            return [-float(len(prompt) + len(response)) for prompt, response in zip(prompts, responses, strict=True)]

    actor = TargetActor(tiny(generation={"neutral_prompt": "Hello."}), None, None, None)
    actor.engine = Counting()
    rows = [{"prompt": "one", "target": "Sure"}, {"prompt": "", "target": "Yes"}, {"prompt": "three", "target": "Sure"}]
    assert [row["neutral_target_logprob"] for row in actor.work(rows)] == [-10.0, None, -10.0]
    assert [row["neutral_target_logprob"] for row in actor.work(rows[:1])] == [-10.0]
    assert [pair for pair in Counting.asked if pair[0] == "Hello."] == [("Hello.", "Sure")]


def test_a_prompt_is_compared_with_its_goal_and_an_empty_one_is_not() -> None:
    class Letters:
        """Counts of the letters a and b, as a unit vector."""

        name = "letters"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            assert len(set(texts)) == len(texts)
            counts = np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    actor = EncoderActor(tiny(encoder={}), Engines(), RemoteLedger(None), None)
    actor.engine = Letters()
    rows = [{"goal": "aaabbbb", "prompt": prompt} for prompt in ("a", "  ", "b", "aaabbbb")]
    # The angle of (3, 4) with either axis and with itself.
    found = actor.work(rows)
    assert {row["training_goal_similarity"] for row in found} == {row["harmless_similarity"] for row in found} == {None}
    assert [row["goal_similarity"] for row in found] == [
        pytest.approx(0.6),
        None,
        pytest.approx(0.8),
        pytest.approx(1.0),
    ]
    # (4, 3) lies between the axes of two of the goals that every prompt is compared with, and along a third.
    compared = EncoderActor(tiny(encoder={}), Engines(), RemoteLedger(None), None, Goals(("a", "b"), ("aaaabbb",)))
    compared.engine = Letters()
    [row, empty] = compared.work([{"goal": "a", "prompt": "aaaabbb"}, {"goal": "a", "prompt": " "}])
    assert row == {name: pytest.approx(value) for name, value in zip(SIMILARITIES, (0.8, 0.8, 1.0), strict=True)}
    assert empty == dict.fromkeys(SIMILARITIES)
    [again] = compared.work([{"goal": "b", "prompt": "b"}])
    assert list(again.values()) == [pytest.approx(value) for value in (1.0, 1.0, 0.6)]


class Away:
    """A judge of which an evaluation and a generation are told the same."""

    name, fingerprint, is_proxy = "away", "0", False

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        return [Judgment("harmful", 1.0), Judgment("unparsed", None), Judgment("unparsed", None, "status 429: slow down")]


def test_a_judge_that_could_not_be_asked_is_another_thing_than_one_that_said_nothing_readable() -> None:
    actor = JudgeActor(tiny(), Engines(), RemoteLedger(None), None)
    actor.engine = Away()
    rows = [{"goal": "g", "prompt": "p", "completion": "c", "split": "train"}] * 3
    found = actor.work(rows)
    assert found == [
        {"judge": "away", "verdict": "harmful", "score": 1.0},
        {"judge": "away", "verdict": "unparsed", "score": None},
        {"error": "judge: status 429: slow down"},
    ]

    # An answer to a harmless request is not asked about, alone or among others.
    harmless = {**rows[0], "split": "harmless"}
    assert actor.work([harmless]) == [{}]
    assert actor.work([harmless, *rows, harmless]) == [{}, *found, {}]

    class Here:
        about: ClassVar = {"name": "away"}

        def map(self, work: Callable[..., Any], payloads: Sequence[tuple]) -> list[tuple[int, Any]]:
            return [(index, work(Away(), *payload)) for index, payload in enumerate(payloads)]

    attempts = [{**row, "error": None, "attack": "direct", "judged_text": None} for row in rows]
    workers: Any = Here()
    pool = JudgePool(workers, 8)
    Judges(pool, None, pool).judge_rows(attempts)
    assert [{**rows[0], "error": None, "attack": "direct", "judged_text": None, **columns} for columns in found] == attempts
