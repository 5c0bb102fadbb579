"""Transfer: what an attack found on the suite's first model, asked of every model, as an attack of its own.

An attack that adapts to a trained model can fail for want of a gradient or of a hint, where the base model's prompts would have
worked; both together bound the model's robustness better than either. The first model is asked again, so that models can be
compared prompt by prompt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dat_ray.errors import InputError
from dat_ray.evaluation.attacks.base import Attack, Planned, Session
from dat_ray.evaluation.questions import Question


class Transfer(Attack):
    """Asks what `source` asked of the first model.

    Attributes:
        source: the attack; the recipe has to name it too, before this one.
    """

    source: ClassVar[type[Attack]]
    in_order = True

    def planned(self) -> Planned:
        named = list(self.config.attacks)
        if self.source.name not in named[: named.index(self.name)]:
            raise InputError("evaluation.attacks", self.name, f"asks what {self.source.name} found: name that one before it")
        return Planned(asked=self.source(self.setup).planned().asked)

    def ask(self, session: Session) -> None:
        questions = [replace(question, attack=self.name) for question in self.source_questions()]
        session.ask(questions)
        session.skip(attempts=self.planned().asked - len(questions))

    def source_questions(self) -> list[Question]:
        """Questions of the source that came to a prompt; `model_calls` is what that cost on the first model."""
        return [question for question in self.setup.asked_first[self.source.name] if question.prompt is not None]
