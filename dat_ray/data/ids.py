"""Row ids: a hash of what determines the row, and the row's own seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

IdPart = str | int | float | None
# Made once: `json.dumps` makes an encoder at each call, which takes longer than a row's hash.
_canonical = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def row_id(*parts: IdPart) -> str:
    """16 hex digits of the sha256 of the parts, written as canonical JSON."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:16]


def row_ids(before: Sequence[IdPart], varying: Iterable[IdPart], after: Sequence[IdPart] = ()) -> list[str]:
    """`row_id(*before, x, *after)` for each x, with the parts that do not vary hashed and written once."""
    common = hashlib.sha256(("[" + "".join(f"{_canonical(part)}," for part in before)).encode())
    ending = "".join(f",{_canonical(part)}" for part in after) + "]"
    found = []
    for part in varying:
        # What mostly varies is an integer, or another id: either is written without looking for what JSON would change.
        if type(part) is int:
            text = str(part)
        else:
            text = f'"{part}"' if type(part) is str and part.isascii() and part.isalnum() else _canonical(part)
        digest = common.copy()
        digest.update((text + ending).encode())
        found.append(digest.hexdigest()[:16])
    return found


def seed_from_id(identifier: str) -> int:
    """A seed in [0, 2**63) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") >> 1


def seeds_from_ids(identifiers: Sequence[str]) -> list[int]:
    """`seed_from_id` of each: the hashes one by one, their arithmetic at once."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(identifier.encode()).digest() for identifier in identifiers])
    # Of the four 8-byte words of a digest the first.
    seeds: list[int] = (np.frombuffer(digests, ">u8")[::4] >> np.uint64(1)).tolist()
    return seeds


def draw_prompt_tokens(lengths: tuple[int, ...], seeds: Sequence[int]) -> list[int]:
    """One of the prompt lengths for each row, uniformly, as a function of the row's seed alone."""
    if len(lengths) == 1:
        return [lengths[0]] * len(seeds)
    return [lengths[seed % len(lengths)] for seed in seeds_from_ids(row_ids(("prompt_tokens",), seeds))]
