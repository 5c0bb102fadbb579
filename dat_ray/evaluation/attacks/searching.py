"""What attacks have in common that search with the model's gradients."""

from __future__ import annotations

from dat_ray.data.ids import row_id
from dat_ray.evaluation.attacks.base import Attack, Row, SearchMethod, Session
from dat_ray.evaluation.questions import Behavior, SearchRequest


class SearchingAttack(Attack):
    """One search a behavior on each model, for the behavior's first target."""

    in_order = True
    gradients = True

    def results(self, session: Session, method: SearchMethod) -> list[tuple[Behavior, Row]]:
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
