"""From what a recipe names to a sampler folder.

Nothing heavy is imported where the folder is a sampler already, so that the driver of a run stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dat_ray.cache import check_hub_cache
from dat_ray.data.stored import model_settings, sound_settings
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.families import recognize
from dat_ray.models.hub import hub_errors


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
    config = _config(found, field)
    if config is None:
        raise InputError(field, spec, "has no config.json: give the folder of a whole model")
    if "dat_sampler" in config:
        return found
    with sound_settings(field, spec):
        family = recognize(config, spec, field)
    from dat_ray.models.convert import converted

    with sound_settings(field, spec):
        return converted(found, family, spec, field)


def _config(folder: str, field: str) -> dict[str, Any] | None:
    path = Path(folder) / "config.json"
    return model_settings(path, field) if path.is_file() else None


def _download(hub_id: str, field: str) -> str:
    """A local copy of a hub model. Its configuration comes first, so that what cannot be used is not downloaded."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, allow_patterns=["config.json"])
        config = _config(folder, field) or {}
        if "dat_sampler" not in config:
            with sound_settings(field, hub_id):
                recognize(config, hub_id, field)
        return snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"])
    except hub_errors() as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(field, hub_id, f"cannot be downloaded ({reason}): give its local folder, or a working hub") from error
