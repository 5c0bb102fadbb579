"""What a round's folder holds, what of it is sound, and the manifest that publishes it.

Ray writes shards whose names carry an id of the execution. A crash can leave a shard cut short, or one whose rows a
later execution wrote again, so the folder is judged by what its shards hold and not by what it was meant to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import (
    ShardFile,
    describe_shard,
    join,
    open_filesystem,
    scan_shards,
    write_manifest,
    write_shard,
)
from dat_ray.errors import DatError, ShardError

# Row checkpoints: one small parquet file of ids for each finished shard, of the shard's name.
CHECKPOINT = "_checkpoint"
PENDING = ".pending.parquet"
ERRORS = "errors"
ERROR_COLUMNS = ("candidate_id", "behavior_id", "target_index", "sample_index", "error")


@dataclass(frozen=True)
class Shard:
    """One sound shard.

    Args:
        file: its manifest entry.
        ids: candidate ids, in order.
        errors: id -> error of the rows that failed.
        nfe: model calls of its rows.
    """

    file: ShardFile
    ids: tuple[str, ...]
    errors: dict[str, str]
    nfe: int


@dataclass(frozen=True)
class Inventory:
    """A folder's shards: the sound ones, and why each other one is not."""

    shards: tuple[Shard, ...]
    damaged: dict[str, str]

    @property
    def ids(self) -> set[str]:
        return {identifier for shard in self.shards for identifier in shard.ids}

    @property
    def errors(self) -> dict[str, str]:
        return {identifier: error for shard in self.shards for identifier, error in shard.errors.items()}


def take_inventory(root: str) -> Inventory:
    """Reads every shard of a round's folder, whole, so that a shard cut short is found."""
    shards, damaged = [], {}
    for name in scan_shards(root):
        try:
            file = describe_shard(root, name)
            table = _read(root, name, ["candidate_id", "error", "nfe"])
        except (ShardError, pa.ArrowInvalid, OSError) as error:
            damaged[name] = str(error)
            continue
        failed = table.filter(pc.is_valid(table["error"]))
        shards.append(
            Shard(
                file,
                tuple(table["candidate_id"].to_pylist()),
                dict(zip(failed["candidate_id"].to_pylist(), failed["error"].to_pylist(), strict=True)),
                pc.sum(table["nfe"]).as_py() or 0,
            )
        )
    return Inventory(tuple(shards), damaged)


def forget_lost_rows(root: str, inventory: Inventory) -> int:
    """Removes checkpoints that promise rows which no sound shard holds, so that those rows are made again.

    Nothing but checkpoint files is deleted.

    Returns:
        Number of checkpoint files removed.
    """
    held = inventory.ids
    fs, inner = open_filesystem(join(root, CHECKPOINT))
    removed = 0
    for name in committed_checkpoints(root):
        try:
            promised = _read(root, f"{CHECKPOINT}/{name}", ["candidate_id"])["candidate_id"].to_pylist()
        except (pa.ArrowInvalid, OSError):
            promised = None
        if promised is None or not held.issuperset(promised):
            fs.delete_file(f"{inner}/{name}")
            removed += 1
    return removed


def committed_checkpoints(root: str) -> list[str]:
    """File names of the checkpoints whose shard was written to its end."""
    return [name for name in scan_shards(join(root, CHECKPOINT)) if not name.endswith(PENDING)]


def publish(root: str, expected: Sequence[str], inventory: Inventory, fingerprint: str) -> None:
    """Checks that every row is there, and writes the manifest over shards that hold each row once.

    Rows that two shards hold are equal, being a function of their id: the shard that is first by name keeps them.
    A shard with nothing new stays out of the manifest; one that is partly new is copied without the known rows.

    Args:
        root: the round's folder.
        expected: candidate ids of the round.
        inventory: of the folder, as it is now.
        fingerprint: of the recipe.

    Raises:
        DatError: a row is missing, or there are rows that nobody asked for.
    """
    missing = set(expected) - inventory.ids
    unknown = inventory.ids - set(expected)
    if missing or unknown:
        damaged = f"; not readable: {', '.join(inventory.damaged)}" if inventory.damaged else ""
        raise DatError(
            f"{root} lacks {len(missing)} of {len(expected)} rows and has {len(unknown)} that are not of this round{damaged}: "
            "run again with --resume"
        )
    seen: set[str] = set()
    files = []
    for shard in inventory.shards:
        fresh = [position for position, identifier in enumerate(shard.ids) if _first_time(identifier, seen)]
        if len(fresh) == len(shard.ids):
            files.append(shard.file)
        elif fresh:
            rows = _read(root, shard.file.path).take(fresh)
            files.append(write_shard(root, f"rest-of-{shard.file.path}", rows.cast(CANDIDATES)))
    _publish_errors(root, files, fingerprint)
    write_manifest(root, files, fingerprint)


def _first_time(identifier: str, seen: set[str]) -> bool:
    new = identifier not in seen
    seen.add(identifier)
    return new


def _publish_errors(root: str, files: Iterable[ShardFile], fingerprint: str) -> None:
    """Failed rows, for a person to look at; they are in the shards too, with their `error`."""
    failed = []
    for file in files:
        table = _read(root, file.path, list(ERROR_COLUMNS))
        failed.append(table.filter(pc.is_valid(table["error"])))
    table = pa.concat_tables(failed)
    if table.num_rows:
        where = join(root, ERRORS)
        write_manifest(where, [write_shard(where, "part-00000.parquet", table)], fingerprint)


def _read(root: str, relative: str, columns: list[str] | None = None) -> pa.Table:
    fs, inner = open_filesystem(join(root, relative))
    # partitioning=None: a folder named a=b above the file must not become a column.
    return pq.read_table(inner, columns=columns, filesystem=fs, partitioning=None)
