"""From what a recipe names to a sampler folder.

Nothing heavy is imported where the folder is a sampler already, so that the driver of a run stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dat_ray.data.stored import model_settings, sound_settings
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.families import Family, recognize
from dat_ray.models.hub import MAIN, hub_folder


def resolve_sampler(spec: str, field: str = "sampler.model", revision: str = MAIN) -> str:
    """A sampler folder for what a recipe names; a published checkpoint is converted on first use, into the cache.

    Args:
        spec: `embedded:NAME`, a sampler folder, or a hub id or folder with a checkpoint of one of the families of
            `dat_ray.models.families` in its published format.
        field: recipe field to name in an error.
        revision: branch, tag or commit of a hub id.

    Returns:
        An absolute folder with `dat_sampler` in its config.json.

    Raises:
        InputError: nothing there, no masked diffusion model, a family that cannot be used, or damaged files.
    """
    found = resolve_model(spec, field)
    if not Path(found).is_dir():
        # The configuration comes first, so that what cannot be used is not downloaded.
        check_sampler_config(str(hub_folder(found, revision, field, ("config.json",))), spec, field)
        found = str(hub_folder(found, revision, field))
    family = check_sampler_config(found, spec, field)
    if family is None:
        return found
    from dat_ray.models.convert import converted

    with sound_settings(field, spec):
        return converted(found, family, spec, field)


def check_sampler_config(folder: str, spec: str, field: str) -> Family | None:
    """What kind of sampler a folder's config.json describes.

    Args:
        folder: local, with config.json.
        spec: its name.
        field: recipe field to name in an error.

    Returns:
        The family of a published checkpoint; None for a folder that is a sampler as it is.

    Raises:
        InputError: no configuration, no masked diffusion model, or a family that cannot be used.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(field, spec, "has no config.json: give the folder of a whole model")
    config: dict[str, Any] = model_settings(path, field)
    if "dat_sampler" in config:
        return None
    with sound_settings(field, spec):
        return recognize(config, spec, field)
