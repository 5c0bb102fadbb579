"""Keeps secrets out of what a run writes: the values of environment variables whose names say that they are one."""

from __future__ import annotations

import os
import re

BLANK = "[secret]"
_NAME = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)", re.IGNORECASE)
_NOT_A_SECRET = re.compile(r"(PATH|FILE|DIR|ENV|TOKEN_ID)$", re.IGNORECASE)
# Shorter ones would blank ordinary words, and are no protection anyway.
SHORTEST = 8
# user:password@ of a URL.
_IN_URL = re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)")


def looks_secret(name: str) -> bool:
    """Whether a variable or a field of this name holds a secret."""
    return bool(_NAME.search(name)) and not _NOT_A_SECRET.search(name)


def secrets_in(text: str) -> list[str]:
    """What secrets a text holds, by the names of their variables; a password in an address is called so."""
    names = [name for name, value in _secrets() if value in text]
    return names + (["a password in an address"] if _IN_URL.search(text) else [])


def redact(text: str) -> str:
    """The text without the secrets of this process' environment and without passwords in addresses."""
    for _, value in _secrets():
        text = text.replace(value, BLANK)
    return _IN_URL.sub(BLANK, text)


def _secrets() -> list[tuple[str, str]]:
    """Names and values, the longest value first: one may be part of another."""
    found = [(name, value) for name, value in os.environ.items() if looks_secret(name) and len(value) >= SHORTEST]
    return sorted(found, key=lambda pair: -len(pair[1]))
