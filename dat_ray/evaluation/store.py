"""Shards that are written once: what lets an evaluation go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.shards import (
    ShardFile,
    describe_shard,
    exists,
    join,
    open_filesystem,
    read_file,
    scan_shards,
    write_bytes,
    write_manifest,
    write_shard,
)
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.errors import DatError, InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """The work of one shard: its file name, the ids its rows will have, and what to ask."""

    name: str
    ids: list[str]
    items: list[Item]

    @property
    def stem(self) -> str:
        """What tells its name from those of other shards."""
        return self.name.removeprefix("part-").removesuffix(".parquet")


class ShardStore:
    """The shards of one folder.

    Args:
        root: folder, local or a URI.
        schema: of its rows, with a column `error`.
        id_column: holds the row's id.
        limit: rows that may fail.
        shard_rows: of one shard, the unit that a crash can cost.
        excused: opening of errors that are results rather than failures; they don't count against the limit.
    """

    def __init__(
        self, root: str, schema: pa.Schema, id_column: str, limit: ErrorLimit, shard_rows: int, excused: str | None = None
    ) -> None:
        self.root, self._schema, self._id_column, self._limit, self._excused = root, schema, id_column, limit, excused
        self._shard_rows = shard_rows
        self._files: dict[str, ShardFile] = {}
        self._tables: dict[str, pa.Table] = {}
        # Of each shard, also of those that have gone on to another store.
        self._errors: dict[str, int] = {}

    def cut(self, stem: str, ids: Sequence[str], items: Sequence[Item]) -> list[Chunk[Item]]:
        """Cuts items into chunks with names `part-STEM-00000.parquet` and so on."""
        spans = [slice(start, start + self._shard_rows) for start in range(0, len(items), self._shard_rows)]
        return [
            Chunk(f"part-{stem}-{number:05}.parquet", list(ids[span]), list(items[span])) for number, span in enumerate(spans)
        ]

    def load_done(self, wanted: Sequence[Chunk[Item]]) -> list[Chunk[Item]]:
        """Loads the shards of the chunks that have one; returns the chunks that have none yet.

        Raises:
            InputError: a shard holds other rows than this chunk would.
        """
        absent = []
        for chunk in wanted:
            where = join(self.root, chunk.name)
            if not exists(where):
                absent.append(chunk)
                continue
            table = read_file(where)
            if self._id_column not in table.column_names or table[self._id_column].to_pylist() != chunk.ids:
                remedy = "holds rows of other settings or of another adapter: remove its folder and run again"
                raise InputError("--run-dir", where, remedy)
            self._load(chunk.name, table, describe_shard(self.root, chunk.name))
        return absent

    def take_from_others(self, wanted: Sequence[Chunk[Item]], stem: str) -> list[Chunk[Item]]:
        """Stores the chunks whose rows all lie in shards of the folder that were cut otherwise; returns the other chunks.

        Args:
            wanted: chunks without a shard.
            stem: what those shards' names begin with.

        Raises:
            ShardError: one of those shards cannot be read.
        """
        found: dict[str, dict[str, Any]] = {}
        for name in scan_shards(self.root) if wanted else ():
            if name not in self._files and name.startswith(f"part-{stem}-"):
                rows: list[dict[str, Any]] = read_file(join(self.root, name)).to_pylist()
                found |= {row[self._id_column]: row for row in rows if self._id_column in row}
        absent = []
        for chunk in wanted:
            if all(identifier in found for identifier in chunk.ids):
                self.put(chunk, [found[identifier] for identifier in chunk.ids])
            else:
                absent.append(chunk)
        return absent

    def put(self, chunk: Chunk[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a chunk's shard, or its rows anew.

        Raises:
            DatError: with these rows too many have failed; the shard is not written, so that a resume asks again.
        """
        table = pa.Table.from_pylist(list(rows), schema=self._schema)
        assert table[self._id_column].to_pylist() == chunk.ids, "a shard holds the rows it was cut for"
        failed = self._failed(row["error"] for row in rows)
        errors = len(failed) + sum(count for name, count in self._errors.items() if name != chunk.name)
        if errors > self._limit.rows:
            raise DatError(
                f"{errors} rows failed, {self._limit.setting} = {self._limit.rate:g} allows "
                f"{self._limit.rows} of {self._limit.total}; the last: {(failed or ['an earlier one'])[-1]}"
            )
        self._load(chunk.name, table, write_shard(self.root, chunk.name, table))

    def rows_of(self, chunk: Chunk[Any]) -> list[dict[str, Any]]:
        """The rows of a chunk that is stored."""
        rows: list[dict[str, Any]] = self._tables[chunk.name].to_pylist()
        return rows

    def remove(self, chunk: Chunk[Any]) -> None:
        """Deletes a chunk's shard, whose rows have gone on to another store."""
        fs, inner = open_filesystem(join(self.root, chunk.name))
        fs.delete_file(inner)
        del self._files[chunk.name], self._tables[chunk.name]

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, in the order of shard names."""
        return [row for name in sorted(self._tables) for row in self._tables[name].to_pylist()]

    def load_rest(self) -> None:
        """Loads shards of an earlier call that this one had no need to ask for."""
        for name in scan_shards(self.root):
            if name not in self._files:
                self._load(name, read_file(join(self.root, name)), describe_shard(self.root, name))

    def publish(self, fingerprint: str) -> None:
        """Writes the manifest."""
        write_manifest(self.root, list(self._files.values()), fingerprint)

    def _load(self, name: str, table: pa.Table, file: ShardFile) -> None:
        self._files[name], self._tables[name] = file, table
        self._errors[name] = len(self._failed(table["error"].to_pylist()))

    def _failed(self, errors: Iterable[str | None]) -> list[str]:
        excused = self._excused
        return [one for one in errors if one is not None and not (excused and one.startswith(excused))]


def error_rate(recipe: Recipe) -> tuple[float, str]:
    """Share of an evaluation's rows that may fail, and the field that says so."""
    own = recipe.evaluation.max_error_rate
    return (recipe.generation.max_error_rate, "generation.max_error_rate") if own is None else (own, "evaluation.max_error_rate")


def measure_once(path: str, weights: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file holds of a model with these weights; where it has nothing of them, they are measured and stored."""
    if exists(path):
        stored = stored_object(path, finite=False)
        with well_formed(path):
            if stored["weights"] == weights:
                return dict(stored["found"])
    found = measure()
    write_bytes(path, json.dumps({"weights": weights, "found": found}, indent=1).encode())
    return found
