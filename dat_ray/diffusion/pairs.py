"""(prompt, response) pairs for the adaptation: de-duplication, split, encoding, and the batch of a step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dat_ray.config.adapt import PairsConfig
from dat_ray.data.control import plain_ids
from dat_ray.data.table_files import listed
from dat_ray.data.table_sources import open_source
from dat_ray.diffusion.counter import seed_from
from dat_ray.errors import InputError

_ORDER, _SHUFFLE = 101, 102


@dataclass(frozen=True)
class ChatSegments:
    """The fixed tokens of a chat canvas.

    Attributes:
        before: ids that open the user's turn, e.g. of ``<|im_start|>user\\n``; never empty under the next-token shift.
        between: ids that close it and open the assistant's turn.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]


@dataclass(frozen=True)
class EncodedPair:
    """A clean canvas ``before + prompt + between + response`` with half-open spans."""

    ids: tuple[int, ...]
    prompt_span: tuple[int, int]
    response_span: tuple[int, int]

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return self.ids[slice(*self.prompt_span)]

    @property
    def response(self) -> tuple[int, ...]:
        """Token ids of the response."""
        return self.ids[slice(*self.response_span)]


def read_pairs(spec: str, config: PairsConfig, field: str = "--pairs") -> list[dict[str, str]]:
    """Reads pairs from a table.

    Args:
        spec: path or URI of a CSV, JSONL, JSON or parquet file, a folder of such, or ``hf:OWNER/NAME[/CONFIG][:SPLIT]``.
        config: names of the columns, and how many rows.
        field: what to name in an error.

    Raises:
        InputError: it cannot be read, lacks a column, or a cell is no text or an empty one.
    """
    source = open_source(spec, field)
    missing = [column for column in (config.prompt, config.response) if column not in source.columns]
    if missing:
        remedy = f"has no column {missing[0]!r}, only {listed(source.columns)}: set pairs.prompt and pairs.response"
        raise InputError(field, spec, remedy)
    rows: list[dict[str, str]] = []
    for place, values, _ in source.rows([config.prompt, config.response]):
        if len(rows) == config.limit:
            break
        row = {"prompt": values[config.prompt], "response": values[config.response]}
        for name, text in row.items():
            if not isinstance(text, str):
                raise InputError(field, spec, f"{place} of {source.name} has a {name} that is no text: give every row both")
            if not text.strip():
                problem = f"{place} of {source.name} has an empty {name}"
                raise InputError(field, spec, f"{problem}: fill it in, or remove the row")
        rows.append(row)
    return rows


def split_pairs(
    pairs: Iterable[Mapping[str, Any]], heldout_share: float = 0.05, rows_per_prompt: int = 3
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """De-duplicates pairs and splits them by a hash of the prompt, so that no prompt is on both sides.

    Args:
        pairs: rows with `prompt` and `response`, in a fixed order: the first rows of a prompt are the ones kept.
        heldout_share: expected share of prompts held out.
        rows_per_prompt: most rows with the same prompt (compared without case and outer space).

    Returns:
        Training and held-out rows, in the order given.
    """
    seen: set[tuple[str, str]] = set()
    count: Counter[str] = Counter()
    train: list[dict[str, str]] = []
    heldout: list[dict[str, str]] = []
    for pair in pairs:
        prompt, response = pair["prompt"].strip(), pair["response"].strip()
        key = " ".join(prompt.casefold().split())
        if not key or not response or (key, response) in seen or count[key] == rows_per_prompt:
            continue
        seen.add((key, response))
        count[key] += 1
        fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2.0**64
        (heldout if fraction < heldout_share else train).append({"prompt": prompt, "response": response})
    return train, heldout


def encode_pairs(
    tokenizer: Any,
    segments: ChatSegments,
    pairs: Iterable[Mapping[str, Any]],
    max_prompt: int = 32,
    max_response: int = 24,
) -> list[EncodedPair]:
    """Tokenizes pairs into clean canvases; a special token written in a text is plain text.

    A row whose prompt exceeds `max_prompt` tokens is left out: cutting it would teach prompts that stop half-way.
    A response is cut to `max_response` tokens, and carries no end-of-turn token, like the targets of the attack.

    Returns:
        One canvas for each row kept, in order.
    """
    if not segments.before:
        raise InputError(
            "segments.before", list(segments.before), "give at least one token: the first prompt token is predicted from it"
        )
    encoded = []
    for pair in pairs:
        prompt, response = plain_ids(tokenizer, pair["prompt"]), plain_ids(tokenizer, pair["response"])
        if not 0 < len(prompt) <= max_prompt or not response:
            continue
        response = response[:max_response]
        lo, hi = len(segments.before), len(segments.before) + len(prompt)
        start = hi + len(segments.between)
        ids = (*segments.before, *prompt, *segments.between, *response)
        encoded.append(EncodedPair(ids, (lo, hi), (start, start + len(response))))
    return encoded


def other_responses(rows: Sequence[EncodedPair]) -> list[EncodedPair]:
    """Gives each row the response of the next row (cyclically) that has another prompt and another response."""
    swapped = []
    for i, row in enumerate(rows):
        donors = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        donor = next((d for d in donors if d.prompt != row.prompt and d.response != row.response), None)
        if donor is None:
            raise InputError("held-out pairs", len(rows), "give at least two different prompts with different responses")
        start = row.response_span[0]
        swapped.append(EncodedPair(row.ids[:start] + donor.response, row.prompt_span, (start, start + len(donor.response))))
    return swapped


def batch_indices(lengths: Sequence[int], batch_size: int, pool_batches: int, seed: int, step: int) -> list[int]:
    """Rows of one training step, a pure function of its arguments.

    The data are an endless row of shuffled epochs. A pool of `pool_batches` batches is cut from it, sorted by length
    and divided into batches of nearly equal lengths; the order of batches within the pool is shuffled.

    Args:
        lengths: canvas length of every row.
        batch_size: rows of a batch; a row may occur twice where two epochs meet.
        pool_batches: batches of a pool.
        seed: of the run.
        step: from 0.

    Returns:
        `batch_size` row numbers.
    """
    n, pool_size = len(lengths), batch_size * pool_batches
    pool, within = divmod(step, pool_batches)
    epochs: dict[int, list[int]] = {}
    members = []
    for place in range(pool * pool_size, (pool + 1) * pool_size):
        epoch, offset = divmod(place, n)
        if epoch not in epochs:
            generator = torch.Generator().manual_seed(seed_from(seed, _ORDER, epoch))
            epochs[epoch] = torch.randperm(n, generator=generator).tolist()
        members.append(epochs[epoch][offset])
    members.sort(key=lambda row: lengths[row])
    generator = torch.Generator().manual_seed(seed_from(seed, _SHUFFLE, pool))
    chosen = int(torch.randperm(pool_batches, generator=generator)[within])
    return members[chosen * batch_size : (chosen + 1) * batch_size]
