"""Forms of a piece of work in turns: who goes first, and what their ratios are."""

from __future__ import annotations

import pytest

from dat_ray.bench import in_turns
from dat_ray.bench.in_turns import take_turns


def test_each_goes_first_in_turn_and_ratios_are_within_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], list[str]()
    monkeypatch.setattr(in_turns.time, "perf_counter", lambda: now[0])

    def form(name: str, seconds: float) -> str:
        order.append(name)
        # The machine slows down: each run takes a tenth longer than the one before it would.
        now[0] += seconds * (1 + 0.1 * len(order))
        return name.upper()

    found = take_turns({"a": lambda: form("a", 1.0), "b": lambda: form("b", 2.0), "c": lambda: form("c", 4.0)}, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert found.results == {"a": "A", "b": "B", "c": "C"}
    assert found.seconds["a"] == pytest.approx([1.4, 1.9, 2.1])
    assert found.median("a") == pytest.approx(1.9)
    pairs = zip(found.seconds["b"], found.seconds["a"], strict=True)
    assert found.ratio("b", "a") == pytest.approx(sorted(slow / fast for slow, fast in pairs)[1])
