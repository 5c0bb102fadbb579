"""What an evaluation's rows are, written beside them: with it the folder can be copied anywhere and judged again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dat_ray import __version__
from dat_ray.config.loading import fingerprint
from dat_ray.config.schema import Recipe
from dat_ray.data.shards import join, write_bytes
from dat_ray.evaluation.compared import Model

RECORD = "replay.json"


def write_record(root: str, recipe: Recipe, suite: str, models: Sequence[Model], inputs: Mapping[str, str] | None = None) -> None:
    """Writes `replay.json` of an evaluation; `inputs` are digests of the files that its attacks read, by field."""
    tree = {
        "format_version": 1,
        "suite": suite,
        "fingerprint": fingerprint(recipe),
        "dat_ray": __version__,
        "models": {model.name: model.weights for model in models},
        "recipe": recipe.model_dump(mode="json"),
        "inputs": dict(inputs or {}),
    }
    write_bytes(join(root, RECORD), json.dumps(tree, indent=1).encode())
