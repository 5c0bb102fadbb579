"""What attacks have in common that search with the model's weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dat_ray.data.ids import row_id
from dat_ray.data.row_types import Row
from dat_ray.evaluation.attacks.base import Attack, MakeSearch, Planned, Session, Setup
from dat_ray.evaluation.questions import Behavior, Question, SearchRequest


class SearchingAttack(Attack):
    """One search a behavior on each model, for the behavior's first target."""

    in_order = True
    gradients = True

    def results(self, session: Session, method: MakeSearch) -> list[tuple[Behavior, Row]]:
        """Every behavior with what its search found, a row of schema SEARCHES."""
        model, suite = session.model, self.setup.scope.suite
        requests = [
            SearchRequest(
                row_id("search", suite, model.name, model.weights, self.name, one.behavior_id, one.targets[0][1]),
                one.behavior_id,
                one.goal,
                one.targets[0][1],
                self.seed_of(one, 0),
            )
            for one in self.setup.behaviors
        ]
        return list(zip(self.setup.behaviors, session.search(self.name, method, requests), strict=True))


class SuffixAttack(SearchingAttack, ABC):
    """Asks with so many suffixes of each search; each bears the calls that were made since the one before."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._found: list[Question] = []

    @property
    @abstractmethod
    def attempts(self) -> int:
        """Suffixes of a search that the model is asked with."""

    @abstractmethod
    def method(self) -> MakeSearch:
        """How to search."""

    def planned(self) -> Planned:
        behaviors = len(self.setup.behaviors)
        return Planned(asked=self.attempts * behaviors, searched=behaviors)

    def search(self, session: Session) -> None:
        self._found = []
        for behavior, row in self.results(session, self.method()):
            prompts: Sequence[str | None] = row["prompts"] or [None] * self.attempts
            for index, (prompt, calls) in enumerate(zip(prompts, _calls(row, len(prompts)), strict=True)):
                self._found.append(Question(self.name, behavior.behavior_id, index, behavior.goal, prompt, calls, row["error"]))

    def ask(self, session: Session) -> None:
        session.ask(self._found)
        self.remember(self._found)


def _calls(row: Row, prompts: int) -> list[int]:
    """What each prompt cost; a search of before this was stored bears all of its cost at the first."""
    known = row.get("prompt_calls") or [row["model_calls"] or 0] * prompts
    return [after - before for before, after in zip([0, *known], known, strict=False)]
