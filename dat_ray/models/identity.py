"""Which weights a model's name stands for, and a record of it, so that other weights under the same name are noticed.

torch is imported only where a folder of weights is looked at, so that the driver of a run stays light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dat_ray.config.loading import fingerprint
from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.shards import exists, join, read_bytes, write_bytes
from dat_ray.errors import InputError
from dat_ray.json_text import parse_object
from dat_ray.models.embedded import EMBEDDED, PREFIX, on_hub
from dat_ray.models.hub import hub_errors
from dat_ray.progress import stage_line

RECORD = "weights.json"
# Settings of a sampler that don't say which prompts it draws: its weights are told apart by what they are, not by their name.
_NOT_IN_LAW = frozenset({"model", "likelihood_samples"})


def weights_of(model: str, field: str = "model", revision: str = "main") -> str | None:
    """What tells a model's weights from others that may stand under the same name.

    Args:
        model: as for `dat_ray.models.embedded.resolve_model`.
        field: recipe field to name in an error.
        revision: branch, tag or commit of a hub id.

    Returns:
        For an embedded model a hash of what it is built from, for a folder its `model_fingerprint`, for a hub id the
        commit that the revision stands for now. None where that cannot be told on this machine: a folder that only other
        nodes see, or a hub out of reach and no copy in the cache.

    Raises:
        InputError: a folder that holds no model, or an installation without the embedded model's files.
    """
    name = model.removeprefix(PREFIX)
    if model != name:
        return row_id(json.dumps(EMBEDDED[name].key(name, field), sort_keys=True)) if name in EMBEDDED else None
    folder = Path(model).expanduser()
    if folder.is_dir():
        from dat_ray.models.loading import model_fingerprint

        try:
            return model_fingerprint(str(folder))
        except InputError as error:
            raise InputError(field, model, error.remedy) from None
    return _commit(model, revision) if on_hub(model) else None


def _commit(hub_id: str, revision: str) -> str | None:
    from huggingface_hub import snapshot_download

    try:
        # As loaders do it: the hub is asked first, and the cache where the hub does not answer.
        snapshot = snapshot_download(hub_id, revision=revision, allow_patterns=["config.json"])
    except hub_errors():
        return None
    except ValueError:  # no id of a hub
        return None
    return Path(snapshot).name


def sampler_fingerprint(config: SamplerConfig, weights: str | None) -> str:
    """16 hex digits of the distribution p(x | y) that a sampler draws from: its weights and every setting that shapes a prompt.

    Backend and number format count, because rounding can tip the choice between two tokens; batch sizes don't.

    Args:
        config: of the sampler.
        weights: of `weights_of`; None where they cannot be told, and the model's name has to do.
    """
    return row_id("sampler", weights or config.model, fingerprint(config, type(config).model_fields.keys() - _NOT_IN_LAW))


def models_of(recipe: Recipe, *sections: str) -> dict[str, str]:
    """Dotted field -> model of the named sections of a recipe, those left out that are absent or served by an endpoint."""
    found = {}
    for section in sections:
        config: Any = recipe
        for name in section.split("."):
            config = None if config is None else getattr(config, name)
        if isinstance(config, SamplerConfig | TargetConfig) and config.backend != "endpoint":
            found[f"{section}.model"] = config.model
    return found


def check_weights(folder: str, models: Mapping[str, str]) -> dict[str, str | None]:
    """Compares the weights of models with those that a folder's rows were made with, and records those that are new there.

    Weights that could not be told when the folder began are not compared later either: nobody knows what they were.

    Args:
        folder: a run directory, or that of an evaluation.
        models: field or name -> model, as for `weights_of`.

    Returns:
        For each field what is recorded: `weights_of`, or None where it could not be told.

    Raises:
        InputError: a model has other weights than those recorded under its name.
    """
    path = join(folder, RECORD)
    recorded = _read(path)
    new = dict(recorded)
    for field, model in models.items():
        now = weights_of(model, field)
        if field not in recorded:
            new[field] = now
            if now is None:
                stage_line(f"{field} = {model}: its weights cannot be told from here, so a change of them would go unnoticed")
            continue
        before = recorded[field]
        if before is not None and now is not None and before != now:
            remedy = (
                f"has other weights ({now}) than the rows in {folder} were made with ({before}): put those back, or begin anew"
            )
            raise InputError(field, model, f"{remedy} in another directory")
    if new != recorded:
        tree = {"format_version": 1, "weights": new}
        write_bytes(path, (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode())
    return {field: new[field] for field in models}


def _read(path: str) -> dict[str, str | None]:
    if not exists(path):
        return {}
    try:
        weights = parse_object(read_bytes(path))["weights"]
        return {str(field): None if one is None else str(one) for field, one in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            RECORD, path, f"is not readable ({type(error).__name__}): restore it, or remove it to go on unchecked"
        ) from None
