"""Reads what a server of chat completions sent: the answer, or why there is none. Pure: status, headers and body in.

Servers differ: some send an error with status 200, some leave the content empty and give a reason beside it, reasoning models
put their reasoning into a field of its own, into parts of the content, or in front of the answer in tags.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from dat_ray.engines.base import Completion
from dat_ray.errors import one_line
from dat_ray.utf8 import clean_text

# Statuses that another try may mend.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Codes of an error that comes with such a status, but stays.
LASTING = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
# Types of content parts that are the answer; reasoning, thinking and the like are not.
ANSWER_PARTS = frozenset({"text", "output_text"})
_REASONING = r"(?:think|thinking|thought|reasoning)"
_REASONING_ENDS = re.compile(rf"</{_REASONING}>|\[/{_REASONING}\]", re.IGNORECASE)
_REASONING_BEGINS = re.compile(rf"\s*(?:<{_REASONING}>|\[{_REASONING}\])", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """Why a try gave no answer.

    Attributes:
        text: one line.
        passing: whether another try may mend it.
    """

    text: str
    passing: bool


def after_reasoning(text: str) -> str:
    """A model's answer without the reasoning in front of it; empty where the reasoning was cut before it came to an end.

    Some chat templates open the reasoning in the prompt, so that its end alone stands in the text.
    """
    ends = list(_REASONING_ENDS.finditer(text))
    if ends:
        return text[ends[-1].end() :].lstrip()
    return "" if _REASONING_BEGINS.match(text) else text


def read_reply(status: int, body: bytes) -> Completion | Problem:
    """The answer of a chat completion, or the problem with it."""
    text = body.decode(errors="replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if status != 200:
        said = f"status {status}: {_message(error) or excerpt(text)}".rstrip(": ")
        return Problem(said, status in PASSING and _code(error) not in LASTING)
    if error:
        return Problem(f"an error with status 200: {_message(error)}", _may_pass(error))
    try:
        choice = document["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        used = (document.get("usage") or {}).get("completion_tokens") or 0
        if choice.get("error") or reason == "error":
            return Problem(f"an error with status 200: {_message(choice.get('error')) or 'finish_reason error'}", True)
    except (LookupError, TypeError, AttributeError) as odd:
        return Problem(f"an answer that is no chat completion ({type(odd).__name__}): {excerpt(text, 100)}", False)
    answer = _answer_text(content)
    if not answer and isinstance(message.get("refusal"), str):
        answer = message["refusal"]  # the model's own words, in a field of their own
    if not answer:
        if reason == "content_filter":
            return Problem("the server's content filter kept the answer back (finish_reason content_filter)", False)
        if reason == "length":
            return Problem(
                "no answer within the limit of tokens (finish_reason length; a model that reasons takes more of them): raise "
                "max_new_tokens, or a judge's max_tokens",
                False,
            )
        if answer is None:
            return Problem(f"an answer without text (finish_reason {excerpt(str(reason), 40)})", False)
    return Completion(clean_text(answer), used if isinstance(used, int) else 0, reason not in ("length", "content_filter"))


def _answer_text(content: Any) -> str | None:
    """Content as text, or the text parts of content that is a list; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") in ANSWER_PARTS]
    return "".join(text for text in texts if isinstance(text, str)) if texts else None


def wanted_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait before the next try; None where it does not say.

    Args:
        headers: of the reply, with names in lower case.
        now: seconds since 1970, for a server that names a date and does not say what its own clock shows.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(headers["retry-after"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    with suppress(KeyError, ValueError, TypeError, OverflowError):
        now = parsedate_to_datetime(headers["date"]).timestamp()
    return max(0.0, until - now)


def excerpt(text: str, length: int = 200) -> str:
    """The beginning of foreign text on one line, without control characters."""
    return one_line(clean_text(text))[:length]


def _message(error: Any) -> str:
    """What an error object says, with its code."""
    if not isinstance(error, dict):
        return excerpt(str(error)) if error else ""
    code = _code(error)
    said = excerpt(str(error.get("message") or json.dumps(error)))
    return f"{said} ({excerpt(code, 40)})" if code else said


def _code(error: Any) -> str:
    found = error.get("code") if isinstance(error, dict) else None
    return str(found) if isinstance(found, str | int) else ""


def _may_pass(error: Any) -> bool:
    """A gateway that reports another server's trouble; where its code is a status, the status says it."""
    code = _code(error)
    if code.isdecimal() and len(code) == 3:
        return int(code) in PASSING
    return code not in LASTING
