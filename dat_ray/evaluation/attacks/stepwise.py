"""What attacks have in common in which an attacker model reads what came back and writes what is asked next.

An answer of the attacker in which no prompt can be found is an attempt without a prompt, counted as such.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from dat_ray.data.row_types import Row
from dat_ray.evaluation.attacks.base import Attack, Session
from dat_ray.evaluation.attacks.rewriting import ATTACKER
from dat_ray.evaluation.questions import UNREADABLE, AttackerRequest, Question

# Of a completion that the attacker is shown.
SHOWN_CHARACTERS = 1000

Talk = TypeVar("Talk")


class Exchange(NamedTuple):
    """One attempt: what was asked, what came back, and the judge's score in [0, 1] (None: it could not tell)."""

    prompt: str
    completion: str
    score: float | None

    def shown(self, form: str) -> str:
        """As the attacker reads it; the form has places for prompt, completion and score."""
        return form.format(prompt=self.prompt, completion=self.completion[:SHOWN_CHARACTERS], score=out_of_ten(self.score))


class StepwiseAttack(Attack, ABC, Generic[Talk]):
    """All conversations with the attacker take a step together.

    Every step is stored, the attacker's answer and the attempt, so a run that goes on finds the conversations where they were.
    """

    needs = (ATTACKER,)
    in_order = True

    @abstractmethod
    def request(self, model: str, talk: Talk, step: int) -> AttackerRequest:
        """What the attacker is asked in a conversation about an attack on this model."""

    @abstractmethod
    def question(self, talk: Talk, step: int, prompt: str | None, problem: str | None) -> Question:
        """What the model is asked, with the attacker's prompt or why there is none."""

    def take_step(
        self, session: Session, step: int, live: Sequence[Talk], over: int, max_new_tokens: int
    ) -> list[tuple[Talk, Question, Row]]:
        """Asks the attacker, then the model.

        Args:
            session: of the model under attack.
            step: counts from 0.
            live: conversations that go on.
            over: how many conversations do not: their attempts are skipped.
            max_new_tokens: of an answer of the attacker.

        Returns:
            Each live conversation with its question and the attempt that came of it, a row of schema ATTEMPTS.
        """
        session.skip(attempts=over, texts=over)
        if not live:
            return []
        stem = f"{session.model.name}-{self.name}-{step:03}"
        requests = [self.request(session.model.name, talk, step) for talk in live]
        written = session.write(stem, requests, max_new_tokens)
        prompts = [(None, row["error"]) if row["error"] is not None else parse(row["text"]) for row in written]
        questions = [self.question(talk, step, *prompt) for talk, prompt in zip(live, prompts, strict=True)]
        return list(zip(live, questions, session.ask(questions, stem), strict=True))


def out_of_ten(score: float | None) -> str:
    """A judge's score on PAIR's scale."""
    return "unknown" if score is None else str(1 + round(9 * score))


def parse(answer: str) -> tuple[str | None, str | None]:
    """The prompt in an attacker's answer, or why there is none.

    The first JSON object with a text under "prompt" counts, whatever stands around it; an object that is cut off or holds
    raw line breaks is read by its "prompt" alone.
    """
    for start in (match.start() for match in re.finditer(r"\{", answer)):
        try:
            found, _ = json.JSONDecoder(strict=False).raw_decode(answer, start)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("prompt"), str) and found["prompt"].strip():
            return found["prompt"].strip(), None
    loose = re.search(r'"prompt"\s*:\s*("(?:[^"\\]|\\.)*")', answer, re.DOTALL)
    if loose:
        try:
            text = json.loads(loose.group(1), strict=False).strip()
        except ValueError:
            text = ""
        if text:
            return text, None
    return None, f"{UNREADABLE} holds no prompt"
