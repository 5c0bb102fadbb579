"""Standard output for what a program says itself: what libraries print from threads of theirs goes to standard error.

Ray prints what a node's agent tells of lost workers and nodes to standard output, from a thread, whatever it was told about
logs: in the middle of a line, or of the JSON that another program reads.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _OfOneThread(io.TextIOBase):
    """Text of one thread goes on, that of the others to standard error."""

    def __init__(self, stream: TextIO, owner: int) -> None:
        self._stream, self._owner = stream, owner

    def _here(self) -> TextIO:
        return self._stream if threading.get_ident() == self._owner else sys.stderr

    def write(self, text: str) -> int:
        return self._here().write(text)

    def flush(self) -> None:
        self._here().flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def closed(self) -> bool:
        return self._stream.closed

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors


@contextmanager
def own_stdout() -> Iterator[None]:
    """While it is open, standard output is the calling thread's alone."""
    stream = sys.stdout
    sys.stdout = _OfOneThread(stream, threading.get_ident())
    try:
        yield
    finally:
        sys.stdout = stream
