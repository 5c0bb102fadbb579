"""Lets an evaluation run inside this process: engines without Ray's processes, and a script that answers for servers.

Both stand-ins take the place of libraries, not of our own modules, and only below the evaluation: its modules may move.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx

# Of a request's body: what the server's model says.
Script = Callable[[dict[str, Any]], str]


class _Done:
    """What a call gave: Ray's reference to it, when nothing has to be waited for."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> _Done:
        return _Done(self._call(*arguments))


class _Actor:
    def __init__(self, held: object) -> None:
        self._held = held

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._held, name))


class _ActorClass:
    def __init__(self, kind: type) -> None:
        self._kind = kind

    def options(self, **_: Any) -> _ActorClass:
        return self

    def remote(self, *arguments: Any) -> _Actor:
        return _Actor(self._kind(*arguments))


class _AtOnce(ThreadPoolExecutor):
    """Does in the caller's own thread what it is handed.

    Two threads that load models at once leave torch's functions for fresh weights as one of them had replaced them, and tests
    that come later begin with other weights. In an evaluation engines have processes of their own.
    """

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


def _ray() -> SimpleNamespace:
    """As much of Ray as a pool of engines asks for; an error is raised where the call is made."""
    return SimpleNamespace(
        remote=_ActorClass,
        get=lambda done: done.value,
        wait=lambda references, **_: (references[:1], references[1:]),
        kill=lambda actor: None,
        is_initialized=lambda: True,
    )


def _server(script: Script) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        text = script(json.loads(request.content))
        return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    return httpx.MockTransport(answer)


@contextmanager
def in_process(script: Script) -> Iterator[None]:
    """Within it, engines live in this process, and every endpoint is answered by the script."""
    ray, client = _ray(), partial(httpx.AsyncClient, transport=_server(script))
    with (
        patch("dat_ray.engines.workers.ray", ray),
        patch("dat_ray.engines.pool_size._totals", lambda: {"CPU": 64.0}),
        patch("dat_ray.raysession.ray", ray),
        patch("dat_ray.evaluation.drawing.ThreadPoolExecutor", _AtOnce),
        patch("dat_ray.engines.endpoint.httpx.AsyncClient", client),
    ):
        yield
