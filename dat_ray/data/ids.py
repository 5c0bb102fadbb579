"""Row ids: a hash of what determines the row, and the row's own seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

IdPart = str | int | float | None


def row_id(*parts: IdPart) -> str:
    """16 hex digits of the sha256 of the parts, written as canonical JSON."""
    canonical = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def row_ids(before: Sequence[IdPart], varying: Iterable[IdPart], after: Sequence[IdPart] = ()) -> list[str]:
    """`row_id(*before, x, *after)` for each x, with the parts that do not vary hashed and written once."""
    common = hashlib.sha256(("[" + "".join(f"{_canonical(part)}," for part in before)).encode())
    ending = "".join(f",{_canonical(part)}" for part in after) + "]"
    found = []
    for part in varying:
        # An integer is written as it is, which is most of what varies.
        text = str(part) if type(part) is int else _canonical(part)
        digest = common.copy()
        digest.update((text + ending).encode())
        found.append(digest.hexdigest()[:16])
    return found


def _canonical(part: IdPart) -> str:
    return json.dumps(part, ensure_ascii=True, separators=(",", ":"))


def seed_from_id(identifier: str) -> int:
    """A seed in [0, 2**63) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") >> 1


def draw_prompt_tokens(lengths: tuple[int, ...], seeds: Sequence[int]) -> list[int]:
    """One of the prompt lengths for each row, uniformly, as a function of the row's seed alone."""
    if len(lengths) == 1:
        return [lengths[0]] * len(seeds)
    return [lengths[seed_from_id(identifier) % len(lengths)] for identifier in row_ids(("prompt_tokens",), seeds)]
