"""The retain set: harmless prompts on which the fine-tuned model should stay close to its old self."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dat_ray.config.training import RetainConfig
from dat_ray.data.ids import row_id
from dat_ray.data.table_files import TEXT, TableSource, listed
from dat_ray.data.table_sources import open_source
from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_json

_FIELD = "training.retain.path"


@dataclass(frozen=True)
class RetainRow:
    """A harmless prompt.

    Attributes:
        retain_id: the table's ``id``, or a hash of prompt and response.
        prompt: user message.
        response: None where the table has none; the base model then writes it.
        source: builtin or hub specification, or file name.
    """

    retain_id: str
    prompt: str
    response: str | None
    source: str


@dataclass(frozen=True)
class RetainSet:
    """What was read of a retain set.

    Attributes:
        rows: in the order of the table.
        odd: why rows were left out -> how many; of chats and instructions, of which large public sets hold odd ones.
    """

    rows: list[RetainRow]
    odd: dict[str, int]


class _OddRow(Exception):
    """A row of a chat or of instructions that holds no prompt; the text says why."""


def load_retain(cfg: RetainConfig) -> list[RetainRow]:
    """The rows of `read_retain`."""
    return read_retain(cfg).rows


def read_retain(cfg: RetainConfig) -> RetainSet:
    """Reads the first ``cfg.limit`` rows of a retain set, in the order of the table.

    Columns: ``prompt``, and where present ``response`` and ``id``. Without ``prompt``: ``instruction`` with ``input`` or
    ``context`` and ``output`` or ``response``, as of Alpaca and Dolly; or a chat in ``messages`` or ``conversations``, with
    that layout also beside a ``prompt``, of which the first user message that the assistant answers is taken; or the lines of
    a text file. A repeated row is kept, with an id of its own. An empty cell of ``response`` is no response, which the base model
    writes.

    Raises:
        InputError: the table cannot be read, a ``prompt`` is missing or not a text, an ``id`` occurs twice, or no row is left.
    """
    source = open_source(cfg.path, _FIELD)
    columns, prompt_and_response = _layout(cfg, source)
    seen: Counter[tuple[str, str | None]] = Counter()
    odd: Counter[str] = Counter()
    first_odd = ""
    places: dict[str, str] = {}
    rows: list[RetainRow] = []
    for place, values, _ in source.rows(columns):
        if len(rows) == cfg.limit:
            break
        try:
            prompt, response = prompt_and_response(values)
        except _OddRow as error:
            first_odd = first_odd or f"{place} of {source.name} {error}"
            odd[str(error)] += 1
            continue
        if not isinstance(prompt, str) or not prompt.strip():
            problem = f"{place} of {source.name} has no {columns[0]!r}"
            raise InputError(_FIELD, cfg.path, f"{problem}: fill it in or remove the row")
        if response is not None and not isinstance(response, str):
            problem = f"{place} of {source.name} has a 'response' that is no text"
            raise InputError(_FIELD, cfg.path, f"{problem}: write a string there, or nothing")
        prompt, response = prompt.strip(), (response or "").strip() or None
        if cfg.max_prompt_characters is not None and len(prompt) > cfg.max_prompt_characters:
            continue
        given = values.get("id")
        if given is None or given == "":
            identifier = row_id(prompt, response, seen[prompt, response])
            seen[prompt, response] += 1
        else:
            identifier = str(given)
        if identifier in places:
            problem = f"{place} and {places[identifier]} of {source.name} share the id {identifier!r}"
            raise InputError(_FIELD, cfg.path, f"{problem}: give each row its own")
        places[identifier] = place
        rows.append(RetainRow(identifier, prompt, response, source.name))
    if not rows and odd:
        problem = f"none of its {sum(odd.values())} rows can be used; {first_odd}"
        raise InputError(_FIELD, cfg.path, f"{problem}: correct it, or choose another set")
    if not rows:
        field = "training.retain.max_prompt_characters"
        raise InputError(field, cfg.max_prompt_characters, f"no prompt of {source.name} is that short: raise it")
    return RetainSet(rows, dict(odd))


_Read = Callable[[Mapping[str, Any]], tuple[Any, Any]]
_CHATS = ("messages", "conversations", "conversation")
# Who speaks, as the formats of OpenAI, ShareGPT and others call it.
_SPEAKERS = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def _layout(cfg: RetainConfig, source: TableSource) -> tuple[list[str], _Read]:
    """The columns that are read, the one of the prompt first, and how they become a prompt and a response.

    Raises:
        InputError: no column of a known layout.
    """
    present = set(source.columns)
    chat = next((name for name in _CHATS if name in present), None)
    if cfg.layout == "columns":
        if "prompt" in present:
            optional = [name for name in ("response", "id") if name in present]
            return ["prompt", *optional], lambda row: (row["prompt"], row.get("response"))
        if "instruction" in present:
            more, answer = (
                next((name for name in names if name in present), None)
                for names in (("input", "context"), ("output", "response"))
            )
            return [name for name in ("instruction", more, answer) if name], lambda row: _instruction(row, more, answer)
        if source.columns == (TEXT,):
            return [TEXT], lambda row: (row[TEXT], None)
    if chat is None:
        needed = "'messages'" if cfg.layout == "messages" else "'prompt', nor 'instruction', 'messages' or 'conversations'"
        raise InputError(_FIELD, cfg.path, f"has no column {needed}, only {listed(source.columns)}: rename one")
    return [chat], lambda row: _first_turn(row[chat])


def _instruction(row: Mapping[str, Any], more: str | None, answer: str | None) -> tuple[str, str | None]:
    """Prompt and response of an instruction with its input."""
    parts = [row["instruction"], row[more] if more else None]
    if any(part is not None and not isinstance(part, str) for part in parts) or not (parts[0] or "").strip():
        raise _OddRow("has no 'instruction', or an input that is no text")
    return "\n\n".join(part.strip() for part in parts if part and part.strip()), row[answer] if answer else None


def _first_turn(chat: Any) -> tuple[str, str]:
    """The first user message that the assistant answers, and the answer.

    Args:
        chat: ``[{"role": ..., "content": ...}, ...]`` or ``[{"from": ..., "value": ...}, ...]``, or a text that holds that as
            JSON. A content is a text or a list of parts. What comes before, a greeting or a system message, is left out.
    """
    if isinstance(chat, str):
        with suppress(JsonError):
            chat = parse_json(chat, finite=False)
    if not isinstance(chat, list) or not all(isinstance(turn, dict) for turn in chat):
        raise _OddRow("holds no list of messages")
    turns = [(_SPEAKERS.get(str(turn.get("role", turn.get("from"))).lower()), turn) for turn in chat]
    for (speaker, turn), (other, answer) in pairwise(turns):
        if speaker == "user":
            if other != "assistant":
                break
            return _content(turn), _content(answer)
    raise _OddRow("holds no user message that the assistant answers next")


def _content(turn: Mapping[str, Any]) -> str:
    """The text of a message.

    Raises:
        _OddRow: it is empty, or holds a part that is no text, such as an image.
    """
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    parts = content if isinstance(content, list) else [content]
    texts = [text for part in parts if isinstance(text := part.get("text") if isinstance(part, dict) else part, str)]
    if len(texts) < len(parts) or not "".join(texts).strip():
        raise _OddRow("holds a message that is empty or more than text")
    return "\n".join(texts)
