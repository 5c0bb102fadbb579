"""What a round's folder holds, what of it is sound, and the manifest that publishes it.

Ray writes shards whose names carry an id of the execution. A crash can leave a shard cut short, or one whose rows a
later execution wrote again, so the folder is judged by what its shards hold and not by what it was meant to hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from dat_ray.data.ids import row_id
from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import (
    ShardFile,
    join,
    open_filesystem,
    read_shard,
    scan_shards,
    shard_sizes,
    write_manifest,
    write_shard,
)
from dat_ray.engines.base import JUDGE_NOT_ASKED
from dat_ray.errors import DatError, ShardError

# Row checkpoints: a small parquet file of ids for each finished shard, of the shard's name; a resume may join many of them.
CHECKPOINT = "_checkpoint"
PENDING = ".pending.parquet"
# Files read at once from an object store, which answers many requests in the time of one. A local folder has a thread for each
# core and one more: with more of them the interpreter's lock goes around, and two cores take half as long again.
READERS = 8
# Checkpoint files that a resume leaves as they are; of more it makes one. With 5,000 of them Ray Data took half a minute on two
# busy cores before the first new row.
MOST_CHECKPOINTS = 64
ERRORS = "errors"
Outcome = TypeVar("Outcome")
ERROR_COLUMNS = ["candidate_id", "behavior_id", "target_index", "sample_index", "error"]


@dataclass(frozen=True)
class Shard:
    """One sound shard.

    Args:
        file: its manifest entry.
        ids: candidate ids, in order.
        errors: id -> error of the rows that failed.
        nfe: model calls of its rows.
        size: of the file, in bytes.
    """

    file: ShardFile
    ids: tuple[str, ...]
    errors: dict[str, str]
    nfe: int
    size: int


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

    def to_resume(self) -> Inventory:
        """Without the rows that no judge could be asked about: what was out of reach then may be there now."""
        return Inventory(tuple(map(_judged, self.shards)), self.damaged)


def _judged(shard: Shard) -> Shard:
    errors = {identifier: error for identifier, error in shard.errors.items() if not error.startswith(JUDGE_NOT_ASKED)}
    again = shard.errors.keys() - errors.keys()
    return replace(shard, ids=tuple(one for one in shard.ids if one not in again), errors=errors) if again else shard


@dataclass(frozen=True)
class Published:
    """What the manifest names: rows, those of them that failed, and model calls of all."""

    rows: int
    errors: int
    nfe: int


def _readers(root: str) -> int:
    return READERS if "://" in root else min(READERS, (os.cpu_count() or 1) + 1)


def _each(root: str, work: Callable[[str], Outcome], names: Sequence[str]) -> dict[str, Outcome]:
    """What `work` gives for each name, several at once.

    A reader takes its share whole: to hand over one name at a time takes as long as a tenth of its file.
    """
    at_once = _readers(root)
    with ThreadPoolExecutor(at_once) as readers:
        shares = list(readers.map(lambda first: [work(name) for name in names[first::at_once]], range(at_once)))
    return {name: shares[number % at_once][number // at_once] for number, name in enumerate(names)}


def take_inventory(root: str, known: Inventory | None = None) -> Inventory:
    """Reads every shard of a round's folder, once and whole, so that a shard cut short is found.

    Args:
        root: the round's folder.
        known: of the same folder, taken before. Nothing writes a shard again, so that one of the same name and size is not read
            again: what a hand of others altered meanwhile does not fit the sha256 that was taken then.
    """
    sizes = shard_sizes(root)
    before = {shard.file.path: shard for shard in known.shards} if known is not None else {}

    def take(name: str) -> Shard | str:
        if name in before and before[name].size == sizes[name]:
            return before[name]
        try:
            file, table = read_shard(root, name)
            ids, errors, calls = (table[column].to_pylist() for column in ("candidate_id", "error", "nfe"))
        except (ShardError, KeyError, pa.ArrowInvalid, OSError) as error:
            return str(error)
        failed = {identifier: error for identifier, error in zip(ids, errors, strict=True) if error is not None}
        return Shard(file, tuple(ids), failed, sum(filter(None, calls)), sizes[name])

    found = _each(root, take, list(sizes))
    return Inventory(
        tuple(shard for shard in found.values() if isinstance(shard, Shard)),
        {name: reason for name, reason in found.items() if isinstance(reason, str)},
    )


def forget_lost_rows(root: str, inventory: Inventory) -> int:
    """Removes checkpoints that promise rows which no sound shard holds, so that those rows are made again.

    Of such a checkpoint's rows, those that are there go into one of their own first. Where more than `MOST_CHECKPOINTS` are left
    they are joined. Nothing but checkpoint files is deleted.

    Returns:
        Number of checkpoint files that promised too much.
    """
    held = inventory.ids
    where = join(root, CHECKPOINT)
    fs, inner = open_filesystem(where)

    def promised(name: str) -> list[str] | None:
        try:
            ids: list[str] | None = read_shard(where, name)[1]["candidate_id"].to_pylist()
            return ids
        except (ShardError, KeyError, OSError):
            return None

    by_name = _each(root, promised, committed_checkpoints(root))
    broken = {name: ids for name, ids in by_name.items() if ids is None or not held.issuperset(ids)}
    for name, ids in broken.items():
        there = [identifier for identifier in ids or () if identifier in held]
        if there:
            write_shard(where, f"rest-{row_id(*there)}.parquet", pa.table({"candidate_id": there}))
        fs.delete_file(f"{inner}/{name}")
    _join_checkpoints(where, {name: ids for name, ids in by_name.items() if ids is not None and name not in broken})
    return len(broken)


def _join_checkpoints(where: str, sound: Mapping[str, list[str]]) -> None:
    """Puts the ids of many checkpoints into one file: Ray Data reads each in a task, which takes longer than all that is in them.

    The joined one is whole before the others go; a process that ends between leaves ids that stand in two files.
    """
    if len(sound) <= MOST_CHECKPOINTS:
        return
    fs, inner = open_filesystem(where)
    ids = sorted({identifier for those in sound.values() for identifier in those})
    joined = write_shard(where, f"rest-{row_id(' '.join(ids))}.parquet", pa.table({"candidate_id": ids}))
    _each(where, lambda name: fs.delete_file(f"{inner}/{name}"), [name for name in sound if name != joined.path])


def committed_checkpoints(root: str) -> list[str]:
    """File names of the checkpoints whose shard was written to its end."""
    return [name for name in scan_shards(join(root, CHECKPOINT)) if not name.endswith(PENDING)]


def publish(root: str, expected: Sequence[str], inventory: Inventory, fingerprint: str) -> Published:
    """Checks that every row is there, and writes the manifest over shards that hold each row once.

    Rows that two shards hold are equal, being a function of their id: the shard that is first by name keeps them. A row that
    failed and was tried again is the exception: the one without an error counts. A shard with nothing new stays out of the
    manifest; one that is partly new is copied without the known rows.

    Args:
        root: the round's folder.
        expected: candidate ids of the round.
        inventory: of the folder, as it is now.
        fingerprint: of the recipe.

    Raises:
        DatError: a row is missing, or there are rows that nobody asked for.
    """
    held, wanted = inventory.ids, set(expected)
    missing, unknown = wanted - held, held - wanted
    if missing or unknown:
        damaged = f"; not readable: {', '.join(inventory.damaged)}" if inventory.damaged else ""
        raise DatError(
            f"{root} lacks {len(missing)} of {len(expected)} rows and has {len(unknown)} that are not of this round{damaged}: "
            "run again with --resume"
        )
    sound = {identifier for shard in inventory.shards for identifier in shard.ids if identifier not in shard.errors}
    seen: set[str] = set()
    files, failed, nfe = [], [], 0
    for shard in inventory.shards:
        fresh = [
            position
            for position, identifier in enumerate(shard.ids)
            if not (identifier in shard.errors and identifier in sound) and _first_time(identifier, seen)
        ]
        if not fresh:
            continue
        if len(fresh) == len(shard.ids):
            files.append(shard.file)
            nfe += shard.nfe
            rows = read_shard(root, shard.file.path)[1] if shard.errors else None
        else:
            rows = read_shard(root, shard.file.path)[1].take(fresh).cast(CANDIDATES)
            # Named by what it holds: should two drivers publish at once, neither alters a file of the other's manifest.
            name = f"rest-{row_id(*rows['candidate_id'].to_pylist())}-of-{shard.file.path}"
            files.append(write_shard(root, name, rows))
            nfe += pc.sum(rows["nfe"]).as_py() or 0
        if rows is not None:
            failed.append(rows.select(ERROR_COLUMNS).filter(pc.is_valid(rows["error"])))
    errors = _publish_errors(root, failed, fingerprint)
    write_manifest(root, files, fingerprint)
    return Published(len(wanted), errors, nfe)


def _first_time(identifier: str, seen: set[str]) -> bool:
    new = identifier not in seen
    seen.add(identifier)
    return new


def _publish_errors(root: str, failed: Sequence[pa.Table], fingerprint: str) -> int:
    """Failed rows, for a person to look at; they are in the shards too, with their `error`."""
    table = pa.concat_tables(failed) if failed else None
    if table is None or not table.num_rows:
        return 0
    where, name = join(root, ERRORS), f"part-{row_id(*table['candidate_id'].to_pylist())}.parquet"
    write_manifest(where, [write_shard(where, name, table)], fingerprint)
    return int(table.num_rows)
