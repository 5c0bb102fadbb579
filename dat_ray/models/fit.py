"""How much of a (prompt, response) pair a row holds: one rule for harmful rows, retain rows and the drift on them.

The prompt is the condition, and stays whole. The response loses its end: first to a limit of its own, then to what the row has
room for. A row whose prompt leaves too little room is left out, whatever its response: the two rows of a harmful prompt are
kept or left out together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Fewer response tokens teach little. A response limit below it asks for no more room than the limit.
LEAST_RESPONSE_TOKENS = 8


class Fit(NamedTuple):
    """What a row keeps of a response, in tokens.

    Attributes:
        kept: from its start.
        beyond_limit: of its end, cut by the response's own limit.
        beyond_room: of what was left then, cut because the row has no room.
    """

    kept: int
    beyond_limit: int
    beyond_room: int


@dataclass(frozen=True)
class Limits:
    """Most tokens of a row.

    Attributes:
        tokens: of the whole row, template included; None: no limit.
        response_tokens: of the response; None: no limit of its own.
    """

    tokens: int | None = None
    response_tokens: int | None = None

    @property
    def least(self) -> int:
        """Response tokens for which a prompt must leave room."""
        return min(LEAST_RESPONSE_TOKENS, self.response_tokens or LEAST_RESPONSE_TOKENS)

    def fit(self, prompt: int, response: int) -> Fit | None:
        """What a row keeps of a response of `response` tokens behind `prompt` tokens; None: the row is left out."""
        wanted = response if self.response_tokens is None else min(response, self.response_tokens)
        if self.tokens is None:
            return Fit(wanted, response - wanted, 0)
        room = self.tokens - prompt
        if room < self.least:
            return None
        kept = min(wanted, room)
        return Fit(kept, response - wanted, wanted - kept)


UNLIMITED = Limits()
