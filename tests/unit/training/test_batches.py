"""Which rows an update sees, and their padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dat_ray.models.chat import Encoded
from dat_ray.training.batches import HarmfulRow, collate, permutation, rows_of_update, share_of_worker

PERMUTATION = (3, 6, 7, 5, 2, 4, 8, 1, 0)


def test_permutation_is_fixed_for_all_time() -> None:
    # Written down: another order would change every run that is resumed with a newer version.
    assert permutation(9, 0, "harmful", 0) == PERMUTATION
    assert sorted(permutation(9, 0, "harmful", 0)) == list(range(9))
    assert permutation(9, 1, "harmful", 0) != PERMUTATION
    assert permutation(9, 0, "retain", 0) != PERMUTATION
    assert permutation(9, 0, "harmful", 1) != PERMUTATION


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(count: int, size: int, seed: int) -> None:
    seen = [row for update in range(count) for row in rows_of_update(count, size, seed, "harmful", update)]
    assert Counter(seen) == dict.fromkeys(range(count), size)
    assert Counter(seen[:count]) == dict.fromkeys(range(count), 1)


@given(st.lists(st.integers(0, 99), max_size=12), st.integers(1, 5))
def test_workers_share_the_rows_of_an_update(rows: list[int], world: int) -> None:
    shares = [share_of_worker(rows, rank, world) for rank in range(world)]
    assert Counter(row for share in shares for row in share) == Counter(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_collate_marks_user_prompt_and_response(encode: Callable[..., Encoded]) -> None:
    batch = collate([encode([10, 0], [0, 12]), encode([13], [14])], share_prefix=True)
    assert batch.ids.tolist() == [[1, 2, 3, 7, 10, 0, 4, 5, 0, 12], [1, 2, 3, 7, 13, 4, 5, 14, 0, 0]]
    assert batch.user.int().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert batch.prompt.int().tolist() == [[1] * 8 + [0, 0], [1] * 7 + [0, 0, 0]]
    assert batch.response.int().tolist() == [[0] * 8 + [1, 1], [0] * 7 + [1, 0, 0]]
    assert batch.valid.int().tolist() == [[1] * 10, [1] * 8 + [0, 0]]
    assert torch.equal(batch.positions("user"), batch.user)
    assert torch.equal(batch.positions("prompt"), batch.prompt)


def test_only_tokens_that_all_rows_have_are_shared(encode: Callable[..., Encoded]) -> None:
    same = [encode([10], [11]), encode([10], [12])]
    assert collate(same, share_prefix=True).shared == 4, "a user message is never shared, equal or not"
    assert collate(same, share_prefix=False).shared == 0
    other = Encoded(ids=[1, 2, 9, 7, 10, 4, 5, 11], user_span=(4, 5), response_span=(7, 8))
    assert collate([*same, other], share_prefix=True).shared == 2
    bare = Encoded(ids=[1, 2], user_span=(1, 1), response_span=(1, 2))
    assert collate([bare], share_prefix=True).shared == 0, "the token before the response predicts it"


def test_a_row_needs_one_prompt_for_both_responses(encode: Callable[..., Encoded]) -> None:
    with pytest.raises(AssertionError, match="one prompt"):
        HarmfulRow(encode([10, 11], [12]), encode([10, 13], [12]))
