"""Data sets of a hub in a rehearsal: their first rows alone, or, out of reach, rows that come with the package."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import Any

from dat_ray.cache import cache_root, check_cache
from dat_ray.config.schema import Recipe
from dat_ray.data.table_sources import HUB, parse_hub_spec
from dat_ray.errors import InputError, error_line

RETAIN_STAND_IN = "builtin:demo-retain"
SECONDS_FOR_THE_HUB = 5.0
_FIRST, _OUT_OF_REACH = "its first rows", "out of reach"
Changes = dict[str, tuple[Any, str]]


def hub_changes(recipe: Recipe) -> Changes:
    """What is replaced of the data that a recipe takes from a hub: dotted field -> value and reason.

    Args:
        recipe: of a rehearsal, so that its limits are small.

    Raises:
        InputError: a data set that the hub does not have, or whose rows cannot be read.
    """
    changes: Changes = {}
    reachable = hub_in_reach()
    retain = recipe.training.retain
    if retain is not None and retain.path.startswith(HUB):
        if reachable:
            assert retain.limit is not None, "a rehearsal limits it"
            changes["training.retain.path"] = (_first_rows(retain.path, 4 * retain.limit, "training.retain.path"), _FIRST)
        else:
            changes["training.retain.path"] = (RETAIN_STAND_IN, _OUT_OF_REACH)
            changes["training.retain.layout"] = ("columns", _OUT_OF_REACH)
    utility = recipe.evaluation.utility
    if utility.tasks and utility.include_path is None and not reachable:
        changes["evaluation.utility.tasks"] = ([], _OUT_OF_REACH)
    return changes


def hub_in_reach() -> bool:
    """Whether a hub answers this machine; not asked where `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    from dat_ray.models.hub import hub_errors

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_FOR_THE_HUB)
    except hub_errors():
        return False
    return True


def _first_rows(spec: str, count: int, field: str) -> str:
    """A file in the cache with the first rows of a data set, whose other files are not downloaded."""
    folder = cache_root().absolute() / "rehearsal" / "rows"
    path = folder / f"{hashlib.sha256(f'{spec} {count}'.encode()).hexdigest()[:16]}.jsonl"
    if path.is_file():
        return str(path)
    hub = parse_hub_spec(spec, field)
    try:
        import datasets
    except ImportError as error:
        raise InputError(field, spec, "needs the `datasets` package: install the extra `dat-ray[hub]`") from error
    try:
        data = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
        rows = [dict(row) for row in islice(data, count)]
    # The library lets errors of several network stacks through, which have no common base class.
    except Exception as error:
        remedy = "check name, config, split and the network, or download the table and give its path"
        raise InputError(field, spec, f"cannot be loaded ({error_line(error)}): {remedy}") from error
    check_cache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    scratch.rename(path)
    return str(path)
