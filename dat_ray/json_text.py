"""Reads JSON that somebody else may have written, in bounded time and memory: what comes out can be walked, computed with and
written again."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

# Far above every file that a run or a model has beside its weights; the largest tokenizers have some 35 MB.
MAX_BYTES = 256 << 20
MAX_DEPTH = 64
# Tokenizers write 10^30 for a length without limit.
MAX_DIGITS = 40


class JsonError(ValueError):
    """A text that is no JSON, or more than a reader takes."""


def parse_json(text: str | bytes, *, finite: bool = True, limit: int | None = MAX_BYTES) -> Any:
    """The value of a JSON text.

    Args:
        text: in UTF-8, where it is bytes.
        finite: NaN, infinities and numbers that round to one are errors; without it they are what Python makes of them, as in
            the configuration of a model.
        limit: of the text, in bytes or characters; None where the caller has one of its own.

    Raises:
        JsonError: not JSON, a key twice in one object, half a character, a number that is not finite or has too many digits,
            or a text too large or nested too deep. In one line.
    """
    if limit is not None and len(text) > limit:
        raise JsonError(f"is larger than {limit >> 20} MiB")
    try:
        written = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(
            written,
            parse_int=_whole,
            parse_float=_finite if finite else None,
            parse_constant=_no_number if finite else None,
            object_pairs_hook=_object,
        )
        _check_depth(value)
        if "\\u" in written or not written.isprintable():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError as error:
        raise JsonError(f"holds half a character (\\u{ord(error.object[error.start]):04x})") from None
    except RecursionError:
        raise JsonError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(f"is not JSON ({' '.join(str(error).split())[:160]})") from None
    return value


def parse_object(text: str | bytes, *, finite: bool = True) -> dict[str, Any]:
    """As `parse_json`, of a text that is one object.

    Raises:
        JsonError: it is not.
    """
    value = parse_json(text, finite=finite)
    if not isinstance(value, dict):
        raise JsonError(f"is a JSON {type(value).__name__}, not an object")
    return value


def parse_lines(text: bytes, *, finite: bool = True) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; empty lines are left out.

    Raises:
        JsonError: a line is no object.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                found.append(parse_object(line, finite=finite))
            except JsonError as error:
                raise JsonError(f"line {number} {error}") from None
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"holds a whole number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"holds {digits[:20]}, which is no finite number")
    return value


def _no_number(name: str) -> float:
    raise JsonError(f"holds {name}, which is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise JsonError(f"has the key {twice[:60]!r} twice in one object")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return
        level = [child for item in inner for child in (item.values() if isinstance(item, dict) else item)]
    raise RecursionError
