"""Keeps one line of Ray's off the screen, which it prints where Ray Data starts its first pool.

Ray's core writes each of its errors to its own log and to the process's error stream, and no setting parts the two: a
higher level empties the log as well, and hides the lines with which the core ends or breaks a process. This line is no
error of a run: the pools' constructor arguments are held by the driver as long as the pools are. Ray says it once a
process, by the first actor that it is true of, so that one which never runs can take it while nobody looks.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray

from dat_ray.placement import on_node

# In Ray's plain format and in that of RAY_BACKEND_LOG_JSON. A progress bar may stand in front of it, without a line's end.
NOTICE = re.compile(rb"[\[{][^\n\[{]*has constructor arguments in the object store and max_restarts > 0[^\n]*\n")


@cache
def hide_notice() -> None:
    """Makes Ray say its line about pools' arguments unseen, and only into its log of this process; the first call does it."""
    nowhere = ray.NodeID.from_random().hex()
    never: Any = ray.remote(max_restarts=1, **on_node(nowhere))(TakesTheNotice)
    argument = ray.put(None)
    with screen_without(NOTICE):
        never.remote(argument)


class TakesTheNotice:
    """An actor for no node, which Ray names in the line instead of the first pool's."""

    def __init__(self, argument: None) -> None:
        raise AssertionError("runs nowhere")


@contextmanager
def screen_without(lines: re.Pattern[bytes]) -> Iterator[None]:
    """Holds back what this process and its native code write to the error stream in a `with` block, and then writes the rest.

    Args:
        lines: what is not shown.
    """
    screen = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            held.seek(0)
            rest = lines.sub(b"", held.read())
            while rest:
                rest = rest[os.write(2, rest) :]
