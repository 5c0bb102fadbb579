"""Keeps secrets out of what a run writes: the values of environment variables whose names say that they are one."""

from __future__ import annotations

import os
import re

BLANK = "[secret]"
_NAME = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)", re.IGNORECASE)
_NOT_A_SECRET = re.compile(r"(PATH|FILE|DIR)$", re.IGNORECASE)
# Shorter ones would blank ordinary words, and are no protection anyway.
SHORTEST = 8
# user:password@ of a URL.
_IN_URL = re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)")


def looks_secret(name: str) -> bool:
    """Whether a variable or a field of this name holds a secret."""
    return bool(_NAME.search(name)) and not _NOT_A_SECRET.search(name)


def redact(text: str) -> str:
    """The text without the secrets of this process' environment and without passwords in addresses."""
    values = {value for name, value in os.environ.items() if looks_secret(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, BLANK)
    return _IN_URL.sub(BLANK, text)
