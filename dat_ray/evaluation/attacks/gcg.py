"""GCG (arXiv 2307.15043): the goal with a suffix that makes the target response likely; `search/gcg.py` finds it."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import Planned, Session, Setup
from dat_ray.evaluation.attacks.searching import SearchingAttack
from dat_ray.evaluation.questions import Question


class GcgAttack(SearchingAttack):
    """Asks with `gcg.attempts` suffixes of each search; the first bears the cost of the search."""

    name = "gcg"
    title = "GCG"
    description = "a suffix found by gradients; needs the model's weights"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._found: list[Question] = []

    def planned(self) -> Planned:
        behaviors = len(self.setup.behaviors)
        return Planned(asked=self.config.gcg.attempts * behaviors, searched=behaviors)

    def search(self, session: Session) -> None:
        from dat_ray.evaluation.search.gcg import GcgSearch

        self._found = []
        for behavior, row in self.results(session, GcgSearch):
            for index, prompt in enumerate(row["prompts"] or [None] * self.config.gcg.attempts):
                calls = (row["model_calls"] or 0) if index == 0 else 0
                self._found.append(Question(self.name, behavior.behavior_id, index, behavior.goal, prompt, calls, row["error"]))

    def ask(self, session: Session) -> None:
        session.ask(self._found)
