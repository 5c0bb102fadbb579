"""An attack of somebody else, whole in one module: it asks each model twice, the second time with its own first answer."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import Attack, Planned, Session
from dat_ray.evaluation.questions import Question


class Echo(Attack):
    """The goal, then what the model said to it."""

    name = "echo"
    title = "Echo"
    description = "the goal, then the answer to it"
    in_order = True

    def planned(self) -> Planned:
        return Planned(asked=2 * len(self.setup.behaviors))

    def ask(self, session: Session) -> None:
        behaviors, name = self.setup.behaviors, session.model.name
        first = [Question(self.name, one.behavior_id, 0, one.goal, one.goal) for one in behaviors]
        answered = session.ask(first, f"{name}-{self.name}-first")
        second = [
            Question(self.name, one.behavior_id, 1, one.goal, row["completion"])
            for one, row in zip(behaviors, answered, strict=True)
        ]
        session.ask(second, f"{name}-{self.name}-second")


class Nameless(Attack):
    """Lacks what people and files call it."""

    description = "nothing"


class Pretender(Echo):
    """Has the name of one that comes with the package."""

    name = "pair"


class EchoAgain(Echo):
    """Has the name of its parent."""
