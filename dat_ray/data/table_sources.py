"""Opens an input table, wherever it lies: a file, a folder, a builtin set or a Hugging Face data set.

Nothing here knows what the columns mean; that is `dat_ray.data.behaviors` and `dat_ray.data.retain`. How a file's bytes
become rows is `dat_ray.data.table_files`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from dat_ray.data.public import PUBLIC, public_file
from dat_ray.data.shards import has_manifest, join, open_filesystem, read_table
from dat_ray.data.table_files import (
    KINDS,
    Origin,
    PlacedRow,
    TableSource,
    cell,
    first_line,
    from_arrow,
    from_rows,
    jsonl_rows,
    read_json_file,
    read_table_file,
    table_kind,
)
from dat_ray.errors import InputError
from dat_ray.progress import stage_line

BUILTIN = "builtin:"
HUB = "hf:"
_HUB_SPEC = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>[\w.-]+))?(?::(?P<split>.+))?")


# Words in a file's name that say which part of a data set it is.
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "evaluation",
    "evaluation": "evaluation",
    "heldout": "heldout",
    "holdout": "heldout",
}
# Data that a folder may hold and nobody here reads; other files, such as a README, are no part of a table.
_OTHER_DATA = re.compile(
    r"\.(?:zip|tar|tgz|7z|rar|zst|lz4|xlsx?|ods|arrow|feather|orc|avro|pkl|pickle|npy|npz|h5|hdf5|sqlite3?|db|partial|crdownload)$"
)
_FILES_SHOWN = 4


class HubSpec(NamedTuple):
    """The parts of ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``; ``name`` is ``OWNER/NAME``."""

    name: str
    config: str | None
    split: str
    revision: str | None = None


def open_source(spec: str, field: str) -> TableSource:
    """Opens a table.

    A folder is one table: its files of a known kind in order of their names, of one split only; what is read of it is said
    on a line. With a manifest it is the files that the manifest names.

    Args:
        spec: path or URI of a file (kinds: `dat_ray.data.table_files.KINDS`), a folder of such files, ``FOLDER/train-*`` for some
            of them, ``builtin:NAME``, ``public:NAME``, or ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``.
        field: the recipe's field that holds ``spec``, for messages.

    Raises:
        InputError: it cannot be read, has no rows, or is a folder that mixes splits or holds data of another kind.
    """
    if spec.startswith(BUILTIN):
        return _builtin(spec, field)
    if spec.startswith(HUB):
        return _hub(spec, field)
    folder, _, pattern = spec.rpartition("/")
    if "*" in pattern and not spec.startswith(PUBLIC):
        folder = folder or ("/" if spec.startswith("/") else ".")
        filesystem, path, _ = _locate(folder, field)
        return _folder(filesystem, path, folder, Origin(field, spec), pattern)
    filesystem, path, kind = _locate(spec, field)
    if kind == pafs.FileType.Directory:
        return _folder(filesystem, path, spec, Origin(field, spec))
    return _file(filesystem, path, Origin(field, spec))


def builtin_names() -> list[str]:
    """Names of the sets that ship with the package."""
    folder = resources.files("dat_ray.data") / "builtin"
    return sorted(item.name.removesuffix(".jsonl").replace("_", "-") for item in folder.iterdir() if item.name.endswith(".jsonl"))


def parse_hub_spec(spec: str, field: str) -> HubSpec:
    """Splits ``hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT]``; the split is ``train`` unless given."""
    match = _HUB_SPEC.fullmatch(spec)
    if match is None:
        raise InputError(field, spec, "write hf:OWNER/NAME[@REVISION][/CONFIG][:SPLIT], as in hf:OWNER/NAME:test")
    return HubSpec(match["name"], match["config"], match["split"] or "train", match["revision"])


def read_json(spec: str, field: str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is missing, or not JSON.
    """
    filesystem, path, _ = _locate(spec, field)
    origin = Origin(field, spec)
    return read_json_file(_read(filesystem, path, origin), origin)


def _locate(spec: str, field: str) -> tuple[pafs.FileSystem, str, pafs.FileType]:
    try:
        filesystem, path = open_filesystem(str(public_file(spec, field)) if spec.startswith(PUBLIC) else spec)
        kind = filesystem.get_file_info(path).type
    except InputError as error:
        raise InputError(field, spec, error.remedy) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(field, spec, f"cannot be reached ({first_line(error)}): check the path and the access") from error
    if kind == pafs.FileType.NotFound:
        raise InputError(field, spec, "no such file or folder: check the path, which starts at the working directory")
    return filesystem, path, kind


def _read(filesystem: pafs.FileSystem, path: str, origin: Origin) -> bytes:
    try:
        with filesystem.open_input_file(path) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise origin.bad(f"cannot be read ({first_line(error)}): check that it is a readable file") from error


def _file(filesystem: pafs.FileSystem, path: str, origin: Origin) -> TableSource:
    return read_table_file(path.rsplit("/", 1)[-1], _read(filesystem, path, origin), origin)


def _folder(filesystem: pafs.FileSystem, path: str, folder: str, origin: Origin, pattern: str = "*") -> TableSource:
    """The files of a folder as one table; with a manifest, the files that it names."""
    table_name = path.rsplit("/", 1)[-1]
    if has_manifest(folder):
        if pattern != "*":
            raise origin.bad("lies in a folder with a manifest, which is read as a whole: name the folder")
        return from_arrow(table_name, read_table(folder), origin)
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise origin.bad(f"cannot be listed ({first_line(error)}): check the path and the access") from error
    names = sorted(f"{info.base_name}/" if not info.is_file else info.base_name for info in infos)
    visible = [name for name in names if not name.startswith((".", "_"))]
    files = [name for name in visible if table_kind(name) is not None and fnmatchcase(name, pattern)]
    other = [name for name in visible if name not in files]
    if not files:
        there = f"only {_some(other)}" if other else "nothing"
        raise origin.bad(f"the folder holds no table that is meant, {there}: put one of {', '.join(KINDS)} there")
    unreadable = [name for name in other if _OTHER_DATA.search(name.lower()) and fnmatchcase(name, pattern)]
    if unreadable:
        raise origin.bad(f"holds data that is not read here ({_some(unreadable)}): convert or move it, or name a file")
    splits: dict[str, list[str]] = defaultdict(list)
    for file in files:
        split = next((_SPLITS[word] for word in re.split(r"[^a-z]+", file.lower()) if word in _SPLITS), None)
        if split is not None:
            splits[split].append(file)
    if len(splits) > 1:
        mixed = "; ".join(f"{split}: {_some(of_split)}" for split, of_split in splits.items())
        meant = "train" if "train" in splits else next(iter(splits))
        raise origin.bad(f"mixes splits ({mixed}): name one file, or the parts of one split, as in FOLDER/*{meant}*")
    parts = [_file(filesystem, join(path, file), Origin(origin.field, join(folder, file))) for file in files]
    odd = next((part for part in parts if set(part.columns) != set(parts[0].columns)), None)
    if odd is not None:
        raise origin.bad(f"{odd.name} and {parts[0].name} have different columns: keep one table in a folder")
    stage_line(f"{origin.field}: {origin.spec} is {_some(files)}; not read: {_some(other) if other else 'nothing'}")

    def rows(columns: Sequence[str]) -> Iterator[PlacedRow]:
        for part in parts:
            for row in part.rows(columns):
                yield row._replace(place=f"{part.name} {row.place}")

    return TableSource(table_name, parts[0].columns, rows)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return ", ".join(names[:_FILES_SHOWN]) + more


def _builtin(spec: str, field: str) -> TableSource:
    name = spec.removeprefix(BUILTIN)
    if name not in builtin_names():
        raise InputError(field, spec, f"no such builtin set: choose one of {', '.join(builtin_names())}")
    resource = resources.files("dat_ray.data") / "builtin" / f"{name.replace('-', '_')}.jsonl"
    origin = Origin(field, spec)
    return from_rows(spec, jsonl_rows(resource.read_text("utf-8"), origin), origin)


def _hub(spec: str, field: str) -> TableSource:
    hub = parse_hub_spec(spec, field)
    try:
        import datasets
    except ImportError as error:
        raise InputError(field, spec, "needs the `datasets` package: install the extra `dat-ray[hub]`") from error
    try:
        data = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)
    # The library lets errors of several network stacks through, which have no common base class.
    except Exception as error:
        remedy = "check name, config, split and the network, or download the table and give its path"
        raise InputError(field, spec, f"cannot be loaded ({first_line(error)}): {remedy}") from error
    if not len(data):
        raise InputError(field, spec, "the split is empty: choose another one")

    def rows(columns: Sequence[str]) -> Iterator[PlacedRow]:
        for number, values in enumerate(data.select_columns(list(columns)), start=1):
            yield PlacedRow(f"row {number}", {column: cell(value) for column, value in values.items()})

    return TableSource(spec, tuple(data.column_names), rows)
