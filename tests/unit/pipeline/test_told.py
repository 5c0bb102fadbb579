"""Facts of a stage as a person reads them."""

from __future__ import annotations

from typing import Any

import pytest

from dat_ray.pipeline.stages import _told


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "dropped 3"),
        ({"duplicate": 2, "leak": 0, "rank": 1}, "dropped 3 (2 duplicate, 1 rank)"),
        ({"duplicate": 0}, ""),
        ({}, ""),
    ],
)
def test_counts_by_kind_are_no_python(value: Any, said: str) -> None:
    assert _told("dropped", value) == said
