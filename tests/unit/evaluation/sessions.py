"""A model under attack, its attacker and its judge, all scripted: what an attack asks of whom, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dat_ray.data.row_types import Row
from dat_ray.engines.calls import Answer
from dat_ray.evaluation.attacks.base import MakeSearch, ReadInstead
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.questions import AttackerRequest, Question, SearchRequest


@dataclass
class ScriptedSession:
    """The `Session` of `dat_ray.evaluation.attacks.base`.

    Attributes:
        name: of the model.
        written: what the attacker writes, of a request's text.
        answered: what the model says, of the turns before the prompt and the prompt.
        harmful: whether the judge finds an answer harmful.
        found: columns of what each search found.
        asked: all questions so far.
        skipped: attempts and texts that were not needed.
        seeds: of the attacker's texts.
    """

    name: str = "base"
    written: Callable[[str], str] = str
    answered: Callable[[tuple[str, ...], str], str | None] = lambda history, prompt: "an answer"
    harmful: Callable[[str], bool] = lambda completion: False
    found: dict[str, Any] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)
    skipped: list[int] = field(default_factory=lambda: [0, 0])
    seeds: list[int] = field(default_factory=list)

    @property
    def model(self) -> Model:
        return Model(self.name, None, "w")

    def write(self, stem: str, requests: Sequence[AttackerRequest], max_new_tokens: int | None = None) -> list[Row]:
        self.seeds += [request.seed for request in requests]
        return [{"text": self.written(request.text), "error": None} for request in requests]

    def ask(self, questions: Sequence[Question], stem: str | None = None, read_instead: ReadInstead | None = None) -> list[Row]:
        self.asked += questions
        return [self._row(question) for question in questions]

    def judge(self, answered: Sequence[tuple[Question, Answer]]) -> list[Row]:
        raise NotImplementedError("no attack of these tests brings answers of its own")

    def search(self, attack: str, method: MakeSearch, requests: Sequence[SearchRequest]) -> list[Row]:
        return [{"error": None, "model_calls": None, "prompts": None, **self.found} for _ in requests]

    def skip(self, attempts: int, texts: int = 0) -> None:
        self.skipped[0] += attempts
        self.skipped[1] += texts

    def _row(self, question: Question) -> Row:
        completion = None if question.prompt is None else self.answered(question.history, question.prompt)
        verdict = None if completion is None else "harmful" if self.harmful(completion) else "not_harmful"
        about = {
            "attempt_index": question.attempt_index,
            "behavior_id": question.behavior_id,
            "prompt": question.prompt,
            "score": 0.0 if verdict else None,
        }
        return about | {"completion": completion, "verdict": verdict}
