"""Where this machine keeps what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

from dat_ray.preflight import check_writable


def cache_root() -> Path:
    """`$DAT_CACHE`, or `~/.cache/dat_ray`."""
    return Path(os.environ.get("DAT_CACHE") or "~/.cache/dat_ray").expanduser()


def check_cache(folder: Path) -> None:
    """Checks before something is made or fetched for a folder that it can be put there.

    Raises:
        InputError: it cannot be written; names the variable that moves it.
    """
    inside = folder.absolute().is_relative_to(cache_root().absolute())
    remedy = "set DAT_CACHE to a folder that can be" if inside else "change its permissions"
    check_writable("DAT_CACHE" if inside else "folder", folder, remedy)


def check_hub_cache(model: str) -> None:
    """Checks that a model can be downloaded into the hub's cache, where it is not there yet.

    Args:
        model: hub id.

    Raises:
        InputError: the cache cannot be written.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(model, "config.json"), str):
        remedy = f"set HF_HOME to a folder that can be, or give a folder that holds {model}"
        check_writable("HF_HOME", constants.HF_HUB_CACHE, remedy)
