"""The chunks of a pool's work, and what becomes of one over which processes end: tried again, then taken apart to single rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

Work = TypeVar("Work", bound=Callable[..., Any])

# Processes that may end while they work on a chunk that cannot be taken apart.
TRIES_PER_CHUNK = 3
# Ends after which a chunk is halved. The first one may have had nothing to do with it: a machine that was taken away.
TRIES_WHOLE = 2
# Processes that end on a row alone before it is given up.
TRIES_ALONE = 2


@dataclass(frozen=True)
class ByRows:
    """How the payload of a kind of work is taken apart.

    Attributes:
        lists: fields with an entry a row of the one dataclass that is the payload (all but the first may be None); without any
            the payload is one row, whatever it holds.
        failed: the result of a row that no process survives, from the reason.
    """

    lists: tuple[str, ...]
    failed: Callable[[str], Any]

    def rows(self, payload: tuple[Any, ...]) -> int:
        """How many rows a payload has."""
        if not self.lists:
            return 1
        [call] = payload
        return len(getattr(call, self.lists[0]))

    def part(self, payload: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
        """The payload with rows `start` to `stop` alone."""
        [call] = payload
        entries = {name: getattr(call, name) for name in self.lists}
        return (replace(call, **{name: given[start:stop] for name, given in entries.items() if given is not None}),)


def by_rows(*lists: str, failed: Callable[[str], Any]) -> Callable[[Work], Work]:
    """Marks work for a pool as one whose result is a list with an entry for each row of its payload; see `ByRows`."""

    def mark(work: Work) -> Work:
        work.by_rows = ByRows(lists, failed)  # type: ignore[attr-defined]
        return work

    return mark


@dataclass
class Piece:
    """A chunk, or some of its rows.

    Attributes:
        index: of the chunk.
        start: its first row in the chunk.
        payload: for the next call.
        rows: how many it has; None where that is not known.
        ended: processes that ended over it, or over what it is a part of.
        alone: of these, those that held nothing but this row.
        suspect: whether a process ended that had it. Such a piece never shares a process's queue with another one: the answer to
            the call before it is lost where a process ends before that has left it, and then nobody knows whose end it was.
    """

    index: int
    start: int
    payload: tuple[Any, ...]
    rows: int | None
    ended: int = 0
    alone: int = 0
    suspect: bool = False


class Pieces:
    """What is left to do of a call to a pool.

    Args:
        work: may be marked with `by_rows`.
        payloads: one a chunk.

    Attributes:
        waiting: pieces that no process has.
    """

    def __init__(self, work: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> None:
        self._by_rows: ByRows | None = getattr(work, "by_rows", None)
        self.waiting = deque(
            Piece(index, 0, payload, None if self._by_rows is None else self._by_rows.rows(payload))
            for index, payload in enumerate(payloads)
        )
        self._payloads = payloads
        # Chunk -> row at which a part starts -> the results of the part's rows.
        self._parts: dict[int, dict[int, list[Any]]] = {}

    def process_ended(self, piece: Piece, reason: str) -> Iterator[tuple[int, Any]]:
        """Puts a piece back to the others after a process has ended over it: whole, in halves, or as a failed row.

        It goes to the end of the line, so that what can be done is done before more processes are risked.

        Yields:
            The chunk's index and result, where this was the last that was missing of it.

        Raises:
            NoResult: it cannot be taken apart, and too many processes have ended over it.
        """
        piece.ended += 1
        if self._by_rows is None or piece.rows == 0:
            if piece.ended == TRIES_PER_CHUNK:
                raise NoResult(f"{TRIES_PER_CHUNK} times over the same rows, the last time: {reason}")
            self.waiting.append(piece)
        elif piece.rows == 1:
            piece.alone += 1
            if piece.alone == TRIES_ALONE:
                failed = self._by_rows.failed(f"{piece.ended} processes ended on this row ({reason})")
                yield from self.finished(piece, [failed] if self._by_rows.lists else failed)
            else:
                self.waiting.append(piece)
        elif piece.ended < TRIES_WHOLE:
            self.waiting.append(piece)
        else:
            assert piece.rows is not None
            middle = piece.rows // 2
            for start, stop in ((0, middle), (middle, piece.rows)):
                payload = self._by_rows.part(piece.payload, start, stop)
                self.waiting.append(Piece(piece.index, piece.start + start, payload, stop - start, piece.ended, suspect=True))

    def finished(self, piece: Piece, result: Any) -> Iterator[tuple[int, Any]]:
        """Takes a piece's result.

        Yields:
            The chunk's index and result, where this was the last that was missing of it.
        """
        whole = None if self._by_rows is None else self._by_rows.rows(self._payloads[piece.index])
        if piece.rows == whole:
            yield piece.index, result
            return
        parts = self._parts.setdefault(piece.index, {})
        parts[piece.start] = result
        if sum(map(len, parts.values())) == whole:
            yield piece.index, [one for start in sorted(parts) for one in parts[start]]
            del self._parts[piece.index]


class NoResult(Exception):
    """A chunk for which there is no result; the message begins after "its process died"."""
