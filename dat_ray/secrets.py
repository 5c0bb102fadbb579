"""Keeps secrets out of what a run writes: values of environment variables that are secrets, in any spelling, and what
addresses and headers carry.

A variable is a secret by its name (`looks_secret`), or because a recipe names it as one (`declare_secret`). Of any other
variable the passwords of addresses in its value are secrets: `DATABASE_URL` holds one. Each process reads its own environment
when it redacts, so that a driver and its actors need not tell each other anything.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus, unquote

BLANK = "[secret]"
_NOTHING = r"(?!)"
_NAME = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CREDS)($|_)"
    # Written together, or at a name's end alone: PGPASSWORD, DB_PASS, MYSQL_PWD; `pass_rate` and PWD are none.
    r"|(PASSWORD|PASSWD|PASSPHRASE|(API|ACCESS|SECRET|PRIVATE)_?KEY|(API|AUTH|ACCESS)_?TOKEN)$|(^|_)PASS$|_(PWD|PAT|AUTH)$",
    re.IGNORECASE,
)
_NOT_A_SECRET = re.compile(r"(PATH|FILE|DIR|ENV|TOKEN_ID|(^|_)(MASK|PAD|EOS|BOS|UNK|SEP|CLS)_TOKEN)$", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Shorter values would blank ordinary words, and are no protection anyway; likewise what a switch is set to.
SHORTEST = 6
_SWITCHES = frozenset({"enable", "enabled", "disable", "disabled", "default", "optional", "required", "always"})
# The part of a value's base64 that depends on nothing before it must be this long to tell it from chance.
_SHORTEST_CORE = 8
# A line of a key that has several.
_SHORTEST_LINE = 16

# USER:PASSWORD@ of an address, or a token in the user's place.
_USER = re.compile(r"(?<=://)(?:[^/\s\"'<>\\]*:[^/\s\"'<>\\]*|[^/\s\"'<>\\@]{16,})(?=@)")
# NAME=VALUE of an address, also of one that is quoted in another.
_QUERY = re.compile(r"(?P<name>(?:[?&;]|%3F|%26)(?P<key>[\w.-]+?)(?:=|%3D))(?P<value>[^&\s\"'<>#\\]+)", re.IGNORECASE)
_SIGNATURES = frozenset({"sig", "signature", "auth", "x_amz_signature", "x_amz_credential", "x_goog_signature"})
_PASSWORD = re.compile(r"(?P<name>\bpassw(?:or)?d=)(?P<value>[^\s&\"';,]+)", re.IGNORECASE)
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?(?:authorization|x-api-key|api-key|cookie|set-cookie)\b(?:[\"']\s*[:,]\s*b?[\"']|\s*[:=]\s*))"
    r"(?P<value>(?:(?:bearer|basic|token)\s+)?[^\s\"',;)}]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)(?P<value>(?=\S*\d)[\w.~+/=-]{12,})", re.IGNORECASE)

# Tokens and keys whose form tells whose they are, whatever variable or file they come from.
_TOKENS = {
    re.compile(r"(?<![\w-])(?:hf_|ghp_|gho_|ghu_|ghs_|ghr_|npm_)[A-Za-z0-9]{30,}(?![\w-])"): "an access token",
    re.compile(r"(?<![\w-])(?:github_pat_|glpat-|pypi-AgE|xox[abprs]-|sk-)[A-Za-z0-9_-]{20,}"): "an access token",
    re.compile(r"(?<![\w-])(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,})(?![\w-])"): "a key of Google Cloud",
}

_declared: set[str] = set()


def declare_secret(variable: str) -> None:
    """Counts an environment variable as a secret of this process, whatever its name."""
    _declared.add(variable)


def looks_secret(name: str) -> bool:
    """Whether a variable or a field of this name holds a secret."""
    spaced = _CAMEL.sub("_", name).replace("-", "_")
    return bool(_NAME.search(spaced)) and not _NOT_A_SECRET.search(spaced)


def token_in(text: str) -> str | None:
    """What token or key of a known service a text holds, told by its form alone; None where there is none."""
    return next((what for form, what in _TOKENS.items() if form.search(text)), None)


def secrets_in(text: str) -> list[str]:
    """What secrets a text holds, by the names of their variables; what stands in an address is called so."""
    text = text.replace(BLANK, "")
    names = [name for name, values in _secrets() if _pattern(values).search(text) or _cores(values).search(text)]
    if _USER.search(text):
        names.append("a password in an address")
    if any(_is_secret_query(match) for match in _QUERY.finditer(text)):
        names.append("a key in an address")
    return names


def redact(text: str) -> str:
    """The text without the secrets of this process' environment and without passwords and keys in addresses and headers.

    Doing it again changes nothing.
    """
    values = tuple(value for _, values in _secrets() for value in values)
    text = _pattern(values).sub(BLANK, _without_base64(text, _cores(values)))
    text = _USER.sub(BLANK, text)
    text = _QUERY.sub(lambda match: match["name"] + BLANK if _is_secret_query(match) else match[0], text)
    for known in (_HEADER, _BEARER, _PASSWORD):
        text = known.sub(rf"\g<name>{BLANK}", text)
    return text


def _is_secret_query(match: re.Match[str]) -> bool:
    key = match["key"].lower().replace("-", "_")
    return looks_secret(key) or key in _SIGNATURES


def _secrets() -> list[tuple[str, tuple[str, ...]]]:
    """Names of variables and the secrets in their values."""
    found = []
    for name, value in os.environ.items():
        whole = (looks_secret(name) or name in _declared) and not (value.startswith("/") and os.path.exists(value))
        values = [*(_lines(value) if whole else ()), *_in_addresses(value)]
        held = tuple(one for one in values if len(one) >= SHORTEST and one.lower() not in _SWITCHES)
        if held:
            found.append((name, held))
    return found


def _lines(value: str) -> Iterator[str]:
    """The value, and of a key of several lines each one that is long enough to be telling."""
    yield from (value, value.strip())
    lines = value.strip().splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE and not line.startswith("-----"))


def _in_addresses(value: str) -> Iterator[str]:
    """Passwords and keys of the addresses in a variable's value, as they are written and as they are meant."""
    for match in _USER.finditer(value):
        user, _, password = match[0].partition(":")
        yield from (password, unquote(password)) if password else (user, unquote(user))
    for match in (*_QUERY.finditer(value), *_PASSWORD.finditer(value)):
        if match.re is _PASSWORD or _is_secret_query(match):
            yield from (match["value"], unquote(match["value"]))


@lru_cache(maxsize=64)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str]:
    """Finds each of the values in each of its spellings, and what was blanked before: it stays as it is."""
    spellings = sorted({form for value in values for form in _spellings(value)}, key=lambda form: (-len(form), form))
    found = [re.escape(BLANK)] if values else [_NOTHING]
    return re.compile("|".join(found + [re.escape(form) for form in spellings]))


@lru_cache(maxsize=64)
def _cores(values: tuple[str, ...]) -> re.Pattern[str]:
    """Finds what each of the values becomes in base64."""
    cores = sorted({core for value in values for core in _base64_cores(value)})
    return re.compile("|".join(map(re.escape, cores)) or _NOTHING)


def _without_base64(text: str, cores: re.Pattern[str]) -> str:
    """Blanks the whole coded text around each core, by hand: a pattern that begins with any digits takes quadratic time."""
    parts, end = [], 0
    for core in cores.finditer(text):
        if core.start() < end:
            continue
        low, high = core.span()
        while low > end and (text[low - 1].isalnum() or text[low - 1] in "_+/-"):
            low -= 1
        while high < len(text) and (text[high].isalnum() or text[high] in "_+/-="):
            high += 1
        parts += [text[end:low], BLANK]
        end = high
    return "".join([*parts, text[end:]])


def _spellings(value: str) -> Iterator[str]:
    """A value as errors, logs, records and addresses write it."""
    yield value
    written = json.dumps(value)[1:-1]
    yield from (repr(value)[1:-1], ascii(value)[1:-1], written, json.dumps(value, ensure_ascii=False)[1:-1])
    yield from (json.dumps(written)[1:-1], repr(written)[1:-1], html.escape(value))
    # Between quotes of the one kind or the other.
    yield from (repr(value)[1:-1].replace("'", "\\'"), value.replace("'", "'\"'\"'"))
    raw = value.encode(errors="surrogateescape")
    yield repr(raw)[2:-1]
    for form in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield from (form, re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form))


def _base64_cores(value: str) -> Iterator[str]:
    """What a value becomes in base64 wherever it begins in the coded text: of USER:KEY one does not know the user's length."""
    raw = value.encode(errors="surrogateescape")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            coded = encode(b"\0" * before + raw).decode()
            # Digits that neighbors have a part in are left out.
            core = coded[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6]
            if len(core) >= _SHORTEST_CORE:
                yield core
