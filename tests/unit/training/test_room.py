"""From when the deadline for room counts, by scripted looks at a cluster and a clock that moves with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dat_ray.diagnosis import Actor
from dat_ray.training import room

DEADLINE = 3.0


@pytest.mark.parametrize(
    ("states", "killed_at"),
    [
        # Each look is a second. Up at look 11: that the start took ten seconds is not counted.
        (["PENDING_CREATION"] * 10 + ["ALIVE"] * 10, 14),
        (["ALIVE"] * 10, 4),
        # Started again by Ray in between.
        (["ALIVE"] * 2 + ["RESTARTING"] * 6 + ["ALIVE"] * 10, 12),
        (["PENDING_CREATION"] * 20, None),
    ],
    ids=["slow start", "up at once", "started again", "never up"],
)
def test_the_deadline_counts_from_when_the_controller_is_up(
    states: list[str], killed_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, over = [0.0], threading.Event()
    killed: list[tuple[int, float]] = []
    script: Iterator[str] = iter(states)

    def actors() -> list[Actor]:
        state = next(script, None)
        if state is None or killed:
            over.set()
            return []
        clock[0] += 1
        return [Actor(name="TrainController", state=state, node="here", pid=7 if state != "PENDING_CREATION" else 0, death="")]

    def kill(pid: int, number: int) -> None:
        killed.append((pid, clock[0]))
        over.set()

    here = SimpleNamespace(get_job_id=lambda: "job", get_node_id=lambda: "here")
    monkeypatch.setattr(room, "SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(room, "job_actors", actors)
    monkeypatch.setattr(room, "placement_group_table", dict)
    monkeypatch.setattr(room.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(room.os, "kill", kill)
    with room.room_within(DEADLINE) as no_room:
        assert over.wait(60)
        assert no_room() == (killed_at is not None)
    # More than DEADLINE seconds after the last look that it was not up at.
    assert [at for _, at in killed] == ([] if killed_at is None else [killed_at])
