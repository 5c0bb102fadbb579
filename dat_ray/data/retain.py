"""The retain set: harmless prompts on which the fine-tuned model should stay close to its old self."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dat_ray.config.training import RetainConfig
from dat_ray.data.ids import row_id
from dat_ray.data.sources import open_source
from dat_ray.errors import InputError

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


def load_retain(cfg: RetainConfig) -> list[RetainRow]:
    """Reads the first ``cfg.limit`` rows of a retain set, in the order of the table.

    Columns: ``prompt``, and where present ``response`` and ``id``; or, with that layout, ``messages``, a chat of which
    the first user message and the answer to it are taken. A repeated row is kept, with an id of its own.

    Raises:
        InputError: the table cannot be read, a prompt is missing or not a text, or an ``id`` occurs twice.
    """
    source = open_source(cfg.path, _FIELD)
    chat = cfg.layout == "messages"
    needed = "messages" if chat else "prompt"
    if needed not in source.columns:
        raise InputError(_FIELD, cfg.path, f"has no column {needed!r}, only {', '.join(source.columns)}: rename one")
    wanted = ["messages"] if chat else [column for column in ("prompt", "response", "id") if column in source.columns]
    seen: Counter[tuple[str, str | None]] = Counter()
    places: dict[str, str] = {}
    rows: list[RetainRow] = []
    for place, values in source.rows(wanted):
        if len(rows) == cfg.limit:
            break
        if chat:
            values = _first_turn(values["messages"], f"{place} of {source.name}", cfg.path)
        prompt = values["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(_FIELD, cfg.path, f"{place} of {source.name} has no 'prompt': fill it in or remove the row")
        response = values.get("response")
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
    if not rows:
        field = "training.retain.max_prompt_characters"
        raise InputError(field, cfg.max_prompt_characters, f"no prompt of {source.name} is that short: raise it")
    return rows


def _first_turn(messages: Any, place: str, path: str) -> dict[str, str]:
    """Prompt and response of a chat [{"role": ..., "content": ...}, ...]."""
    turns = messages if isinstance(messages, list) and all(isinstance(turn, dict) for turn in messages) else []
    talk = [turn for turn in turns if turn.get("role") != "system"]
    if [turn.get("role") for turn in talk[:2]] != ["user", "assistant"]:
        raise InputError(_FIELD, path, f"{place} has 'messages' that do not begin with a user and an assistant: correct it")
    return {"prompt": talk[0]["content"], "response": talk[1]["content"]}
