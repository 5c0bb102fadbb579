"""From what a recipe names to the folder of a whole model that an engine loads: hub ids at their commit, adapters merged.

An adapter names its base in adapter_config.json (`base_model_name_or_path`, `revision`). It is merged once, into the cache; its
own tokenizer and chat template, where it brings them, stand in place of the base's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from dat_ray.cache import cache_root
from dat_ray.data.ids import row_id
from dat_ray.errors import InputError
from dat_ray.models.adapter_settings import ADAPTER_CONFIG, ADAPTER_RECORD, ADAPTER_WEIGHTS, read_adapter_settings
from dat_ray.models.embedded import on_hub, resolve_model
from dat_ray.models.folders import build_once
from dat_ray.models.hub import DESCRIPTION, MAIN, WEIGHTS, Revision, hub_folder

CONFIG = "config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)


@dataclass(frozen=True)
class ModelSource:
    """Where the files of a named model lie, as far as they were asked for.

    Attributes:
        spec: its name.
        folder: local; of a hub model the snapshot of one commit.
        commit: of a hub model, else None.
        base: of an adapter the model that it adapts, else None.
    """

    spec: str
    folder: Path
    commit: str | None
    base: ModelSource | None = None


def find_source(spec: str, field: str, revision: str = MAIN, *, weights: bool = True, download: bool = True) -> ModelSource:
    """Finds what a recipe names.

    Args:
        spec: `embedded:NAME`, a folder or a hub id, of a model or of a LoRA adapter that names its base.
        field: recipe field to name in an error.
        revision: of a hub id, `REVISION` or `REVISION+REVISION OF THE BASE`.
        weights: whether weights are asked for; else configurations, tokenizers and templates.
        download: whether what is missing may be fetched.

    Raises:
        InputError: nothing there, a hub that does not give it, or an adapter that names no base or an adapter as its base.
    """
    wanted = Revision.read(revision)
    found = _files(spec, field, wanted.own, weights=weights, download=download)
    if not is_adapter(found.folder):
        return found
    settings = read_adapter_settings(str(found.folder), field)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        remedy = f"its {ADAPTER_CONFIG} names no base model: put base_model_name_or_path there, or give the merged model"
        raise InputError(field, spec, remedy)
    if not on_hub(base) and not Path(base).expanduser().is_dir() and not base.startswith("embedded:"):
        remedy = f"is an adapter of {base}, no folder on this machine: correct base_model_name_or_path in its {ADAPTER_CONFIG}"
        raise InputError(field, spec, remedy)
    stored = settings.get("revision")
    base_revision = stored if wanted.base == MAIN and isinstance(stored, str) and stored else wanted.base
    try:
        below = _files(base, field, base_revision, weights=weights, download=download)
    except InputError as error:
        raise type(error)(field, spec, f"is an adapter of {base}: {base} {error.remedy}") from error
    if is_adapter(below.folder):
        raise InputError(
            field, spec, f"is an adapter of {base}, which is an adapter itself: merge that one, and name the merged model"
        )
    return ModelSource(spec, found.folder, found.commit, below)


def served_model(spec: str, field: str = "model", revision: str = MAIN) -> str:
    """The local folder of a whole model for what a recipe names, its weights downloaded and an adapter merged.

    Args:
        spec, field, revision: as for `find_source`.

    Raises:
        InputError: as `find_source`, or an adapter that is no plain LoRA or belongs to another model.
    """
    source = find_source(spec, field, revision)
    return str(source.folder) if source.base is None else _merged(source, field)


def tokenizer_folder(spec: str, field: str = "model", revision: str = MAIN) -> str:
    """The local folder of a model's tokenizer and chat template: an adapter's own, where it brings them.

    No weights are asked for.

    Args:
        spec, field, revision: as for `find_source`.

    Raises:
        InputError: as `find_source`.
    """
    source = find_source(spec, field, revision, weights=False)
    own = source.base is None or any((source.folder / name).is_file() for name in _TOKENIZER_FILES)
    return str(source.folder if own or source.base is None else source.base.folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model; of a folder that holds both, loaders differ in what they read."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors*"))


def _files(spec: str, field: str, revision: str, *, weights: bool, download: bool) -> ModelSource:
    found = resolve_model(spec, field)
    if Path(found).is_dir():
        return ModelSource(spec, Path(found), None)
    folder = hub_folder(found, revision, field, WEIGHTS if weights else DESCRIPTION, download=download)
    return ModelSource(spec, folder, folder.name)


def _merged(source: ModelSource, field: str) -> str:
    # Imported late: torch and PEFT are for those who merge.
    from dat_ray.models.loading import model_fingerprint
    from dat_ray.models.merging import MERGE_VERSION, write_merged

    assert source.base is not None
    base = str(source.base.folder)
    adapter = source.folder / ADAPTER_WEIGHTS
    if not adapter.is_file():
        raise InputError(field, source.spec, f"has no {ADAPTER_WEIGHTS}: give a LoRA adapter in safetensors format")
    key = {"merge": MERGE_VERSION, "base": model_fingerprint(base), "adapter": adapter_fingerprint(source.folder)}
    folder = cache_root().absolute() / "merged" / row_id(*key.values())

    def build(scratch: Path) -> None:
        copy = scratch / "adapter"
        copy.mkdir()
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, ADAPTER_RECORD):
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, copy / name)
        if not (copy / ADAPTER_RECORD).is_file():
            # An adapter from elsewhere names its base by name, ours by its weights.
            (copy / ADAPTER_RECORD).write_text(json.dumps({"format_version": 1, "base_fingerprint": key["base"]}))
        write_merged(base, str(copy), scratch, dtype=None)
        shutil.rmtree(copy)
        for name in _TOKENIZER_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, scratch / name)

    try:
        build_once(folder, key, build)
    except InputError as error:
        raise InputError(field, source.spec, f"is an adapter of {source.base.spec}, and {error.remedy}") from error
    return str(folder)


def adapter_fingerprint(folder: Path) -> str:
    """16 hex digits of the bytes of an adapter's files and of the tokenizer that it brings."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("adapter_*"), *(folder / name for name in _TOKENIZER_FILES)]):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()[:16]
