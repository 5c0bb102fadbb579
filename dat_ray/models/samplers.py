"""From what a recipe names to a sampler folder.

Nothing heavy is imported where the folder is a sampler already, so that the driver of a run stays light.
"""

from __future__ import annotations

import json
from pathlib import Path

from dat_ray.cache import check_hub_cache
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.families import recognize


def resolve_sampler(spec: str, field: str = "sampler.model") -> str:
    """A sampler folder for what a recipe names; a published checkpoint is converted on first use, into the cache.

    Args:
        spec: `embedded:NAME`, a sampler folder, or a hub id or folder with a checkpoint of one of the families of
            `dat_ray.models.families` in its published format.
        field: recipe field to name in an error.

    Returns:
        An absolute folder with `dat_sampler` in its config.json.

    Raises:
        InputError: nothing there, no masked diffusion model, a family that cannot be used, or damaged files.
    """
    found = resolve_model(spec, field)
    if not Path(found).is_dir():
        check_hub_cache(spec)
        found = _download(spec, field)
    config = _config(found)
    if config is None:
        raise InputError(field, spec, "has no config.json: give the folder of a whole model")
    if "dat_sampler" in config:
        return found
    family = recognize(config, spec, field)
    from dat_ray.models.convert import converted

    return converted(found, family, spec, field)


def _config(folder: str) -> dict | None:
    path = Path(folder) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _download(hub_id: str, field: str) -> str:
    """A local copy of a hub model. Its configuration comes first, so that what cannot be used is not downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(hub_id, allow_patterns=["config.json"])
        config = _config(folder) or {}
        if "dat_sampler" not in config:
            recognize(config, hub_id, field)
        return snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(field, hub_id, f"cannot be downloaded ({reason}): give its local folder, or a working hub") from error
