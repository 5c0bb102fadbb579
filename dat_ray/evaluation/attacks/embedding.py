"""The continuous attack of training, on a held-out goal: the model answers under a perturbation of its prompt's embeddings.

Its prompt is no text, so nobody can send it through a chat window; it bounds from above what a search over prompts can do.
`search/embedding.py` finds it, and asks the model too: only there the perturbed embeddings are at hand.
"""

from __future__ import annotations

from dat_ray.engines.calls import Answer
from dat_ray.evaluation.attacks.base import Planned, Session
from dat_ray.evaluation.attacks.searching import SearchingAttack
from dat_ray.evaluation.questions import Question


class EmbeddingAttack(SearchingAttack):
    """One perturbation and one answer of each behavior."""

    name = "embedding"
    title = "Embedding attack"
    description = "a continuous perturbation of the goal's embeddings; needs the model's weights"

    def planned(self) -> Planned:
        behaviors = len(self.setup.behaviors)
        return Planned(asked=behaviors, searched=behaviors)

    def search(self, session: Session) -> None:
        from dat_ray.evaluation.search.embedding import EmbeddingSearch

        session.judge(
            [
                (
                    Question(self.name, one.behavior_id, 0, one.goal, one.goal, row["model_calls"] or 0),
                    Answer(row["completion"], row["seconds"] or 0.0, row["error"]),
                )
                for one, row in self.results(session, EmbeddingSearch)
            ]
        )

    def ask(self, session: Session) -> None:
        """Nothing: the answers came with the searches."""
