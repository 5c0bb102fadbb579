"""What attacks have in common that ask an attacker model to rewrite the goal.

What the attacker writes is stored raw; an answer that is empty or refuses is an attempt without a prompt, counted as such.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dat_ray.engines.refusal_judge import is_refusal
from dat_ray.evaluation.attacks.base import Attack, Planned, Session, Setup, Writer
from dat_ray.evaluation.questions import EMPTY_ANSWER, UNREADABLE, AttackerRequest, Question

ATTACKER = "evaluation.attacker"


@dataclass(frozen=True)
class Rewriting:
    """A question whose prompt the attacker has yet to write.

    Attributes:
        question: its `prompt` is None.
        request: whose answer will be the prompt.
    """

    question: Question
    request: AttackerRequest


class RewritingAttack(Attack, ABC):
    """Asks each model what the attacker has written beforehand.

    Attributes:
        rewritten: the questions, once `write` is done.
    """

    needs = (ATTACKER,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.rewritten: list[Question] = []

    @abstractmethod
    def rewritings(self) -> list[Rewriting]:
        """What the attacker is to write, all at one temperature."""

    def planned(self) -> Planned:
        count = len(self.rewritings())
        return Planned(asked=count, written=count)

    def write(self, attacker: Writer) -> None:
        wanted = self.rewritings()
        self.rewritten = rewritten(wanted, attacker.write(self.name, [one.request for one in wanted]))

    def ask(self, session: Session) -> None:
        session.ask(self.rewritten)


def rewritten(wanted: Sequence[Rewriting], written: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions, with the attacker's answers (rows of schema REWRITES, in order) as their prompts."""
    found = []
    for one, row in zip(wanted, written, strict=True):
        prompt, problem = None, row["error"]
        if problem is None:
            prompt, problem = readable(row["text"])
        found.append(replace(one.question, prompt=prompt, error=problem, model_calls=1))
    return found


def readable(text: str) -> tuple[str | None, str | None]:
    """An attacker's answer as a prompt, or why it is none."""
    cleaned = text.strip().strip('"').strip()
    if not cleaned:
        return None, EMPTY_ANSWER
    if is_refusal(cleaned):
        return None, f"{UNREADABLE} is a refusal"
    return cleaned, None
