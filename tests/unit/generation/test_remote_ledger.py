"""What a process sees whose ledger cannot be reached, without Ray: one line, whatever Ray says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError, RayTaskError

from dat_ray.errors import DatError, HelperLost
from dat_ray.generation.actors import RemoteLedger, SamplerActor
from dat_ray.generation.stage import _stop_reason

LOSSES = [ActorDiedError(), ActorUnavailableError("no route to\nhost", None), ActorUnschedulableError("its node is\ngone")]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RemoteLedger:
    """A ledger whose every answer is this error."""

    def get(ref: object) -> Any:
        raise request.param

    monkeypatch.setattr(ray, "get", get)
    method = SimpleNamespace(remote=lambda *arguments: None)
    return RemoteLedger(SimpleNamespace(begin=method, reason=method, stop=method))


@pytest.mark.parametrize("ledger", LOSSES, indirect=True, ids=lambda error: type(error).__name__)
def test_a_ledger_that_cannot_be_reached_is_one_line_for_actor_and_driver(ledger: RemoteLedger) -> None:
    with pytest.raises(HelperLost, match=r"^generate stopped: its record of failed rows.*--resume keeps what is done$") as caught:
        ledger.begin("sampler", ["a"])
    assert "\n" not in str(caught.value)
    reason = _stop_reason(ledger)
    assert isinstance(reason, HelperLost)
    assert str(reason) == str(caught.value)


RAISED = RayTaskError("begin", "DatError: too many rows", DatError("too many rows")).as_instanceof_cause()


@pytest.mark.parametrize("ledger", [RAISED], indirect=True)
def test_what_the_ledger_itself_raises_comes_through(ledger: RemoteLedger) -> None:
    with pytest.raises(DatError, match="too many rows") as caught:
        ledger.begin("sampler", ["a"])
    assert not isinstance(caught.value, HelperLost)


@pytest.mark.parametrize("ledger", LOSSES[:1], indirect=True)
def test_a_process_that_loads_for_too_long_ends_without_a_ledger_too(
    ledger: RemoteLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that waits cannot be interrupted: if the timer failed, nothing would end it."""
    import threading

    ended, failed = threading.Event(), list[Any]()
    monkeypatch.setattr("os._exit", lambda status: ended.set())
    monkeypatch.setattr(threading, "excepthook", failed.append)
    actor = SamplerActor.__new__(SamplerActor)
    actor.ledger = ledger
    with actor._deadline(0.01):
        assert ended.wait(30)
