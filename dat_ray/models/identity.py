"""Which weights a model's name stands for, and a record of it, so that other weights under the same name are noticed.

torch is imported only where a folder of weights is looked at, so that the driver of a run stays light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dat_ray.config.loading import fingerprint
from dat_ray.config.models import EncoderConfig, EngineConfig, SamplerConfig, TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.shards import exists, join, read_bytes, write_bytes
from dat_ray.errors import InputError
from dat_ray.json_text import parse_object
from dat_ray.models.embedded import EMBEDDED, PREFIX, on_hub
from dat_ray.models.hub import MAIN, Revision, split_revision, with_revision
from dat_ray.models.served import adapter_fingerprint, find_source, is_adapter
from dat_ray.progress import stage_line

RECORD = "weights.json"
_COMMIT = re.compile("[0-9a-f]{40}")
# Settings of a sampler that don't say which prompts it draws: its weights are told apart by what they are, not by their name.
_NOT_IN_LAW = frozenset({"model", "likelihood_samples"})


def weights_of(model: str, field: str = "model", revision: str = MAIN) -> str | None:
    """What tells a model's weights from others that may stand under the same name.

    Args:
        model: as for `dat_ray.models.served.find_source`, with or without `@REVISION`.
        field: recipe field to name in an error.
        revision: branch, tag or commit of a hub id, where the name says none.

    Returns:
        For an embedded model a hash of what it is built from, for a folder its `model_fingerprint`, for a hub id the
        commit that the revision stands for now; for an adapter its own and its base's, with a plus sign between them.
        None where that cannot be told on this machine: a folder that only other nodes see, or a hub out of reach and no
        copy in the cache.

    Raises:
        InputError: a folder that holds no model, or an installation without the embedded model's files.
    """
    model, named = split_revision(model)
    if model.startswith(PREFIX):
        name = model.removeprefix(PREFIX)
        return row_id(json.dumps(EMBEDDED[name].key(name, field), sort_keys=True)) if name in EMBEDDED else None
    folder = Path(model).expanduser()
    if folder.is_dir() and not is_adapter(folder):
        return _content(folder, model, field)
    if not folder.is_dir() and not on_hub(model):
        return None
    try:
        source = find_source(model, field, revision if named == MAIN else named, weights=False)
    except (InputError, ValueError):
        return None
    own = source.commit or adapter_fingerprint(source.folder)
    if source.base is None:
        return own
    base = source.base.commit or weights_of(source.base.spec, field)
    return None if base is None else f"{own}+{base}"


def _content(folder: Path, model: str, field: str) -> str:
    from dat_ray.models.loading import model_fingerprint

    try:
        return model_fingerprint(str(folder))
    except InputError as error:
        raise InputError(field, model, error.remedy) from None


def pinned_revision(config: EngineConfig | EncoderConfig, recorded: str | None, field: str) -> str:
    """The revision that keeps a model where a run found it: that of a recipe, with commits in place of branches.

    A revision that is a commit stays as it is.

    Args:
        config: of the model.
        recorded: what the run has in its record, if anything.
        field: recipe field of the model.
    """
    asked = Revision.read(config.revision)
    if _COMMIT.fullmatch(asked.own):
        return config.revision
    weights = recorded if recorded is not None and config.revision == MAIN else weights_of(config.model, field, config.revision)
    own, _, base = (weights or "").partition("+")
    here = config.model.startswith(PREFIX) or Path(config.model).expanduser().is_dir()
    kept = Revision(
        own if not here and _COMMIT.fullmatch(own) else asked.own,
        base if _COMMIT.fullmatch(base) else asked.base,
    )
    return str(kept)


def sampler_fingerprint(config: SamplerConfig, weights: str | None) -> str:
    """16 hex digits of the distribution p(x | y) that a sampler draws from: its weights and every setting that shapes a prompt.

    Backend and number format count, because rounding can tip the choice between two tokens; batch sizes don't.

    Args:
        config: of the sampler.
        weights: of `weights_of`; None where they cannot be told, and the model's name has to do.
    """
    return row_id("sampler", weights or config.model, fingerprint(config, type(config).model_fields.keys() - _NOT_IN_LAW))


def models_of(recipe: Recipe, *sections: str) -> dict[str, str]:
    """Dotted field -> model, with its revision, of the named sections of a recipe.

    Those are left out that are absent or served by an endpoint.
    """
    found = {}
    for section in sections:
        config: Any = recipe
        for name in section.split("."):
            config = None if config is None else getattr(config, name)
        if isinstance(config, SamplerConfig | TargetConfig | EncoderConfig) and getattr(config, "backend", None) != "endpoint":
            found[f"{section}.model"] = with_revision(config.model, config.revision)
    return found


def check_weights(folder: str, models: Mapping[str, str], texts: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Compares models and texts with those that a folder's rows were made with, and records those that are new there.

    Weights that could not be told when the folder began are not compared later either: nobody knows what they were.

    Args:
        folder: a run directory, or that of an evaluation.
        models: field or name -> model, as for `weights_of`.
        texts: field -> what stands there, however it came there: a judge's prompt.

    Returns:
        For each field of `models` what is recorded: `weights_of`, or None where it could not be told.

    Raises:
        InputError: a model has other weights than those recorded under its name, or another text stands in a field.
    """
    path = join(folder, RECORD)
    recorded = recorded_weights(folder)
    new = dict(recorded)
    for field, model in models.items():
        now = _now(model, field, recorded.get(field))
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
    for field, text in (texts or {}).items():
        now = new[field] = row_id(text)
        if recorded.get(field, now) != now:
            remedy = (
                f"is another text ({now}) than the rows in {folder} were made with ({recorded[field]}): put that back, or begin"
            )
            raise InputError(field, f"{text[:40]}...", f"{remedy} anew in another directory")
    if new != recorded:
        tree = {"format_version": 1, "weights": new}
        write_bytes(path, (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode())
    return {field: new[field] for field in models}


def _now(model: str, field: str, recorded: str | None) -> str | None:
    """`weights_of`; a `main` that was resolved when the folder began stays at that commit."""
    spec, revision = split_revision(model)
    own, _, base = (recorded or "").partition("+")
    if revision != MAIN:
        return weights_of(model, field)
    if _COMMIT.fullmatch(own) and not Path(spec).expanduser().is_dir():
        return recorded
    return weights_of(spec, field, str(Revision(MAIN, base if _COMMIT.fullmatch(base) else MAIN)))


def recorded_weights(folder: str) -> dict[str, str | None]:
    """What `check_weights` has recorded in a folder.

    Raises:
        InputError: a damaged record.
    """
    return _read(join(folder, RECORD))


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
