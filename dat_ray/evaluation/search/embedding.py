"""Perturbs the embeddings of a goal until a response is likely, by training's own attack, and lets the model answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dat_ray.evaluation.questions import SearchRequest
from dat_ray.evaluation.search.whitebox import Whitebox
from dat_ray.models.chat import Encoded
from dat_ray.training.attacked import attack_embeddings


class EmbeddingSearch:
    """The embedding attack as a method of search, with the settings `evaluation.embedding`."""

    def __init__(self, whitebox: Whitebox) -> None:
        self._whitebox = whitebox

    def advance(self, request: SearchRequest, row: Encoded, state: None, stop: Callable[[], bool]) -> dict[str, Any]:
        """In one go: it takes no longer than an update of the training."""
        config = self._whitebox.evaluation.embedding.attack
        embeddings, losses = attack_embeddings(self._whitebox.network, row, config)
        return {"completion": self._whitebox.complete(embeddings), "losses": losses, "model_calls": config.steps + 2}
