"""What became of a training table's rows: how many were left out, and how much of their responses was cut.

A training folder keeps them as `rows.json`; the log and the report use the same sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dat_ray.data.shards import exists, join, write_bytes
from dat_ray.data.stored import stored_object, well_formed

if TYPE_CHECKING:
    # Whoever reads the counts, as the report does, needs no tokenizer.
    from dat_ray.models.chat import Encoded

ROWS_FILE = "rows.json"
# Left-out rows that a line names; the file names all.
NAMED = 3
NAMES = {"harmful": "harmful rows", "rewrites": "rewritten rows", "retain": "retain rows"}


@dataclass(frozen=True)
class ResponseCount:
    """What rows kept of one kind of response.

    Attributes:
        limited: responses cut to `max_response_tokens`.
        cut: responses cut, further or only, because their row had no room.
        tokens: of the responses before any cut.
        kept: tokens that are left of them.
    """

    limited: int
    cut: int
    tokens: int
    kept: int

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> ResponseCount:
        """Counts encoded rows; `response_span` must be that of the encoding."""
        limited = cut = kept = lost = 0
        for row in rows:
            limited += row.beyond_limit > 0
            cut += row.beyond_room > 0
            kept += row.response_span[1] - row.response_span[0]
            lost += row.beyond_limit + row.beyond_room
        return cls(limited, cut, kept + lost, kept)


@dataclass(frozen=True)
class TableCount:
    """What became of one table's rows.

    Attributes:
        rows: of the table.
        left_out: ids of the rows whose prompt leaves too little room for a response.
        responses: by kind: target and refusal of a harmful row, response of a retain row.
        max_tokens: tokens of a row.
        least: response tokens for which a prompt must leave room.
    """

    rows: int
    left_out: tuple[str, ...]
    responses: dict[str, ResponseCount]
    max_tokens: int
    least: int

    @property
    def kept(self) -> int:
        """Rows that are trained on."""
        return self.rows - len(self.left_out)

    @property
    def cut(self) -> int:
        """Responses cut for lack of room."""
        return sum(count.cut for count in self.responses.values())

    def why_left_out(self) -> str:
        """As `3 of 10 left out, whose prompts leave no room for 8 response tokens in 128 (c1, c4, c7)`."""
        named = [*self.left_out[:NAMED], *(["..."] if len(self.left_out) > NAMED else [])]
        return (
            f"{len(self.left_out)} of {self.rows} left out, whose prompts leave no room for {self.least} response tokens "
            f"in {self.max_tokens} ({', '.join(named)})"
        )


def write_counts(root: str, counts: Mapping[str, TableCount]) -> None:
    """Writes `rows.json` into a training folder."""
    write_bytes(join(root, ROWS_FILE), json.dumps({name: asdict(table) for name, table in counts.items()}, indent=1).encode())


def read_counts(root: str) -> dict[str, TableCount]:
    """The counts of a training folder; empty where there are none yet."""
    path = join(root, ROWS_FILE)
    if not exists(path):
        return {}
    with well_formed(path):
        return {name: _table(tree) for name, tree in stored_object(path).items()}


def _table(tree: Mapping[str, Any]) -> TableCount:
    responses = {kind: ResponseCount(**count) for kind, count in tree["responses"].items()}
    return TableCount(tree["rows"], tuple(tree["left_out"]), responses, tree["max_tokens"], tree["least"])


def sentences(counts: Mapping[str, TableCount]) -> list[str]:
    """One line a table: rows kept, rows left out, responses cut."""
    return [f"{NAMES[name]}: {_sentence(table)}" for name, table in counts.items()]


def _sentence(table: TableCount) -> str:
    left_out = f"; {table.why_left_out()}" if table.left_out else ""
    return f"{table.kept:,}, prompts whole; " + ", ".join(_cut(kind, count) for kind, count in table.responses.items()) + left_out


def _cut(kind: str, count: ResponseCount) -> str:
    if not count.limited and not count.cut:
        return f"no {kind} cut"
    parts: Sequence[str] = [
        *([f"{count.limited:,} to max_response_tokens"] if count.limited else []),
        *([f"{count.cut:,} to the room behind the prompt"] if count.cut else []),
    ]
    return f"{kind}s cut: {' and '.join(parts)} ({100 * count.kept / count.tokens:.0f}% of their tokens kept)"
