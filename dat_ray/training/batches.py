"""Which rows an update sees, and the padded tensors they become.

The choice depends on (seed, update) alone: neither a restart nor the number of workers changes it.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dat_ray.models.chat import Encoded

# Updates whose coins are counted together.
_BLOCK = 256


@dataclass(frozen=True)
class HarmfulRow:
    """A prompt with its harmful response and, after the same prompt tokens, its refusal."""

    harmful: Encoded
    refusal: Encoded

    def __post_init__(self) -> None:
        prompt = self.harmful.response_span[0]
        assert self.harmful.ids[:prompt] == self.refusal.ids[: self.refusal.response_span[0]], "one delta needs one prompt"


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to the longest of them.

    Attributes:
        ids: (B, T) int64, 0 at padding.
        valid: (B, T) bool, False at padding.
        user: (B, T) bool, the user message.
        prompt: (B, T) bool, everything before the response.
        response: (B, T) bool, the response; token id 0 is as good as any other.
        shared: leading tokens that are the same in every row and that no attack touches.
        response_tokens: of each row, on the host.
    """

    ids: Tensor
    valid: Tensor
    user: Tensor
    prompt: Tensor
    response: Tensor
    shared: int
    response_tokens: tuple[int, ...]

    @functools.cached_property
    def response_index(self) -> tuple[Tensor, Tensor]:
        """Row and position of each response token, row after row; looked up once, for the host waits for the device."""
        rows, at = self.response.nonzero(as_tuple=True)
        return rows, at

    def positions(self, name: str) -> Tensor:
        """(B, T) bool: where an attack on `user`, `prompt` or `sequence` positions may act."""
        return {"user": self.user, "prompt": self.prompt, "sequence": self.valid}[name]


def collate(rows: Sequence[Encoded], *, share_prefix: bool, device: torch.device | str = "cpu") -> Batch:
    """Pads rows to one batch.

    Args:
        rows: at least one.
        share_prefix: look for tokens before the user message that all rows have; off where they are perturbed.
        device: of the tensors.
    """
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (length - len(row.ids))] for row in rows], dtype=torch.int64, device=device)
    at = torch.arange(length, device=device)[None]

    def span(bounds: list[tuple[int, int]]) -> Tensor:
        low, high = torch.tensor(bounds, device=device).unbind(1)
        return (at >= low[:, None]) & (at < high[:, None])

    return Batch(
        ids=ids,
        valid=span([(0, len(row.ids)) for row in rows]),
        user=span([row.user_span for row in rows]),
        prompt=span([(0, row.response_span[0]) for row in rows]),
        response=span([row.response_span for row in rows]),
        shared=_common_prefix(rows) if share_prefix else 0,
        response_tokens=tuple(high - low for low, high in (row.response_span for row in rows)),
    )


def _common_prefix(rows: Sequence[Encoded]) -> int:
    # One token before the response stays out: its hidden state predicts the response.
    limit = min(min(row.user_span[0], row.response_span[0] - 1) for row in rows)
    first = rows[0].ids
    same = (all(row.ids[i] == first[i] for row in rows) for i in range(limit))
    return next((i for i, equal in enumerate(same) if not equal), limit)


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, stream: str, epoch: int) -> tuple[int, ...]:
    """A shuffle of range(count) that no library version changes: the order of sha256 digests."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{stream}/{epoch}/{index}".encode()).digest()

    return tuple(sorted(range(count), key=key))


def rows_of_update(count: int, size: int, seed: int, stream: str, update: int) -> list[int]:
    """Indices of the rows that one update sees, over all workers.

    Updates walk through one permutation after another, so that every row is seen once an epoch.

    Args:
        count: rows there are.
        size: rows of an update.
        seed: of the run.
        stream: name that keeps two tables' permutations apart.
        update: number of the update, from 0, among those that see this table.
    """
    places = range(update * size, (update + 1) * size)
    return [permutation(count, seed, stream, place // count)[place % count] for place in places]


def is_rewrite(share: float, seed: int, update: int) -> bool:
    """Whether an update of a mixture sees rewrites: a coin of probability `share` that (seed, update) alone decides."""
    digest = hashlib.sha256(f"{seed}/mixture/{update}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def rewrites_before(share: float, seed: int, update: int) -> int:
    """How many updates before this one see rewrites (`is_rewrite`)."""
    blocks = update // _BLOCK
    whole = sum(_rewrites_of_block(share, seed, block) for block in range(blocks))
    return whole + sum(is_rewrite(share, seed, earlier) for earlier in range(blocks * _BLOCK, update))


@functools.lru_cache(maxsize=4096)
def _rewrites_of_block(share: float, seed: int, block: int) -> int:
    return sum(is_rewrite(share, seed, update) for update in range(block * _BLOCK, (block + 1) * _BLOCK))


def share_of_worker(rows: Sequence[int], rank: int, world: int) -> list[int]:
    """The rows that worker `rank` of `world` takes: the shares are disjoint and make up the whole."""
    return list(rows[rank::world])
