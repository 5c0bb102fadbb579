"""Servers of chat completions as they are: what each does, and what becomes of the row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from dat_ray.config.models import EndpointConfig, JudgeConfig, TargetConfig
from dat_ray.engines import endpoint
from dat_ray.engines.chat_reply import after_reasoning, wanted_wait
from dat_ray.engines.endpoint import Clock, EndpointModel
from dat_ray.errors import InputError
from tests.unit.engines.scripted_server import Reply, serve

# Of servers that never come to an end, so that no test waits for a slow machine.
SHORT = {"timeout": 0.3}


class Skipping(Clock):
    """Time passes in waits alone, at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


def said(content: object, reason: str = "stop", **message: object) -> str:
    return json.dumps({"choices": [{"message": {"content": content, **message}, "finish_reason": reason}]})


def busy(**headers: str) -> Reply:
    return Reply('{"error": {"message": "slow down"}}', 429, {name.replace("_", "-"): value for name, value in headers.items()})


def refused(parameter: str, hint: str = "") -> Reply:
    message = f"Unsupported parameter: '{parameter}' is not supported with this model. {hint}"
    return Reply(json.dumps({"error": {"message": message, "param": parameter, "code": "unsupported_parameter"}}), 400)


def bits(text: str, count: int) -> tuple[bytes, ...]:
    return tuple(text.encode()[i : i + 1] for i in range(count))


HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LONG = said("yes" * 40)


@dataclass(frozen=True)
class Case:
    """One server.

    Attributes:
        replies: in order; the last is repeated.
        text: of the answer; None where the row fails.
        error: parts of the row's error.
        requests: that the server gets; None where that depends on how fast it is.
        waits: the least seconds of each wait between them.
    """

    replies: tuple[Reply | str, ...]
    text: str | None = None
    error: tuple[str, ...] = ()
    requests: int | None = 1
    waits: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "a rate limit that opens after seconds": Case((busy(Retry_After="7"), busy(Retry_After="41"), "ok"), "ok", (), 3, (7, 41)),
    "a rate limit until a date, by a server whose clock is wrong": Case(
        (busy(Date="Tue, 01 Jan 2019 10:00:00 GMT", Retry_After="Tue, 01 Jan 2019 10:01:30 GMT"), "ok"), "ok", (), 2, (90,)
    ),
    "a date that has passed": Case((busy(Retry_After="Tue, 01 Jan 2019 10:00:00 GMT"), "ok"), "ok", (), 2, (0,)),
    "a rate limit in milliseconds": Case((busy(Retry_After_Ms="1500", Retry_After="9"), "ok"), "ok", (), 2, (1.5,)),
    "a rate limit that asks for too long": Case((busy(Retry_After="3600"),), None, ("asks to wait 3600 s", "longest_wait"), 1),
    "a longer limit that the recipe allows": Case((busy(Retry_After="3600"), "ok"), "ok", (), 2, (3600,), {"longest_wait": 4000}),
    "no limit": Case((busy(Retry_After="9000"), "ok"), "ok", (), 2, (9000,), {"longest_wait": None, "timeout": float("inf")}),
    "a wait that nobody can read": Case((busy(Retry_After="soon"), busy(Retry_After="nan"), "ok"), "ok", (), 3, (0, 0)),
    "a rate limit that stays": Case((busy(Retry_After="2"),), None, ("status 429: slow down",), 3, (2, 2)),
    "an account without money": Case(
        (Reply('{"error": {"message": "You exceeded", "code": "insufficient_quota"}}', 429),), None, ("insufficient_quota",), 1
    ),
    "maintenance": Case((Reply("", 503, {"Retry-After": "5"}), "ok"), "ok", (), 2, (5,)),
    "a gateway's error inside a 200": Case(('{"error": {"message": "upstream", "code": 503}}', "ok"), "ok", (), 2, (0,)),
    "an error inside a 200 that stays": Case(
        ('{"error": {"message": "no such key", "code": 401}}',), None, ("an error with status 200: no such key (401)",), 1
    ),
    "an error inside a choice": Case(
        (json.dumps({"choices": [{"message": {"content": ""}, "error": {"message": "cut off", "code": 502}}]}),),
        None,
        ("cut off",),
        3,
        (0, 0),
    ),
    "an error as mere text": Case(('{"error": "overloaded"}', "ok"), "ok", (), 2, (0,)),
    "a server that knows max_completion_tokens alone": Case(
        (refused("max_tokens", "Use 'max_completion_tokens' instead."),),
        None,
        ("status 400", "set endpoint.token_limit to max_completion_tokens"),
    ),
    "a model that takes no temperature": Case((refused("temperature"),), None, ("name it in endpoint.omit",)),
    "a refusal in a field of its own": Case((said(None, refusal="I won't."),), "I won't."),
    "reasoning that took all tokens": Case(
        (said(None, "length", reasoning_content="Let me think"),), None, ("finish_reason length", "raise max_new_tokens")
    ),
    "the same with empty content": Case((said("", "length", reasoning="Let me"),), None, ("finish_reason length",)),
    "an answer that the filter kept back": Case((said("", "content_filter"),), None, ("finish_reason content_filter",)),
    "a prompt that the filter kept back": Case(
        (Reply('{"error": {"message": "filtered", "code": "content_filter"}}', 400),), None, ("status 400", "content_filter")
    ),
    "a call of a tool that nobody offered": Case(
        (said(None, "tool_calls", tool_calls=[{}]),), None, ("finish_reason tool_calls",)
    ),
    "an empty answer": Case((said(""),), ""),
    "an answer in parts, with reasoning": Case(
        (said([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "full_"}, {"type": "text", "text": "refusal"}]),),
        "full_refusal",
    ),
    "parts without an answer": Case((said([{"type": "thinking", "thinking": "hm"}], "stop"),), None, ("without text",)),
    "half a surrogate pair": Case(('{"choices": [{"message": {"content": "a \\ud83d b \\ud83d\\ude00"}}]}',), "a \ufffd b 😀"),
    "half a surrogate pair in an error": Case((Reply('{"error": {"message": "bad \\udc80"}}', 400),), None, ("bad \ufffd",)),
    "a page with control characters": Case(
        (Reply("<html>\x1b[31mBad\r\ngateway\x07", 404),), None, (r"status 404: <html>\x1b[31mBad gateway\x07",)
    ),
    "usage as nobody writes it": Case(('{"choices": [{"message": {"content": "ok"}}], "usage": null}',), "ok"),
    "a stream that nobody asked for": Case(
        ('data: {"choices": [{"delta": {"content": "hi"}}]}\n\n',), None, ("no chat completion",)
    ),
    "a message that is a list": Case(('{"choices": [{"message": ["ok"]}]}',), None, ("no chat completion",)),
    "JSON without an end": Case(("[" * 100_000,), None, ("no chat completion",)),
    "no bytes at all": Case(("",), None, ("no chat completion",)),
    "a body bit by bit": Case((Reply(bits(LONG, 150), pause=0.02),), None, ("endpoint.timeout = 0.3 s",), None, (0, 0), SHORT),
    "headers bit by bit": Case(
        (Reply(bits(HEAD, 60), pause=0.05, raw=True),), None, ("endpoint.timeout = 0.3 s",), None, (0, 0), SHORT
    ),
    "chunks that never end": Case(
        (Reply((f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), *[b"1\r\nx\r\n"] * 60), pause=0.05, raw=True),),
        None,
        ("endpoint.timeout = 0.3 s",),
        None,
        (0, 0),
        SHORT,
    ),
    "an answer beyond all measure": Case((said("x" * 300_000),), None, ("more than",)),
}


def config(url: str, **fields: Any) -> TargetConfig:
    section = {"url": url, "timeout": 60.0, "retries": 2, **fields}
    return TargetConfig.model_validate({"model": "scripted", "backend": "endpoint", "endpoint": section})


def in_order(replies: tuple[Reply | str, ...]) -> Callable[[dict[str, Any]], Reply | str]:
    left: Iterator[Reply | str] = iter(replies)

    def script(body: dict[str, Any]) -> Reply | str:
        found = next(left, replies[-1])
        # Text that is no reply of its own kind stands for an ordinary answer.
        return Reply(found) if isinstance(found, str) and found != "ok" else found

    return script


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_server(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LARGEST_REPLY", 200_000)
    clock = Skipping()
    with serve(in_order(case.replies)) as server:
        (found,) = EndpointModel(config(server.url, **case.settings), clock).complete(["hi"], 8)
        assert case.requests in (None, len(server.asked))
    if case.text is None:
        assert (found.text, found.finished) == ("", False)
        assert found.error is not None
        assert found.error.isprintable()
        for part in case.error:
            assert part in found.error
    else:
        assert (found.text, found.error) == (case.text, None)
    found.text.encode()
    assert len(clock.slept) == len(case.waits)
    for least, slept in zip(case.waits, clock.slept, strict=True):
        # What is asked for, or else a wait of the client's own.
        assert least <= slept <= max(least, endpoint.LONGEST_WAIT)


def test_a_wait_that_one_row_is_asked_for_is_that_of_all() -> None:
    clock = Skipping()
    replies = in_order((busy(Retry_After="20"), "ok"))
    with serve(replies) as server:
        model = EndpointModel(config(server.url, concurrency=1), clock)
        assert [one.text for one in model.complete(["a", "b", "c"], 8)] == ["ok"] * 3
        assert clock.slept == [20.0]
        model._open_at = clock.now() + 5.0
        model.complete(["d"], 8)
    assert clock.slept == [20.0, 5.0], "a row that has not been asked yet waits too"


def test_what_a_recipe_adds_to_a_request_and_leaves_out() -> None:
    settings = {
        "token_limit": "max_completion_tokens",
        "omit": ["temperature", "seed"],
        "extra_body": {"reasoning_effort": "low", "provider": {"order": ["x"]}},
    }
    with serve(lambda body: "ok") as server:
        EndpointModel(config(server.url, **settings)).complete(["hi"], 9, temperature=0.5, seeds=[3])
    (asked,) = server.asked
    assert asked["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature", "seed"} & set(asked)
    assert (asked["reasoning_effort"], asked["provider"]) == ("low", {"order": ["x"]})


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens", "temperature", "seed", "stream", "n"])
def test_fields_with_a_setting_of_their_own_are_no_extra_ones(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is set by .*leave it out of extra_body"):
        EndpointConfig(url="http://localhost", extra_body={name: 1})


@pytest.mark.parametrize(
    ("name", "proxy", "remedy"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "needs the package socksio"),
        ("https_proxy", "socks5h://me:hidden@127.0.0.1:1080", "needs the package socksio"),
        ("HTTP_PROXY", "ftp://127.0.0.1", "is no proxy that can be used"),
    ],
)
def test_a_proxy_that_cannot_be_followed_is_one_line(name: str, proxy: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(InputError, match=f"^{name} = .*{remedy}") as failed:
        EndpointModel(config("https://localhost/v1"))
    assert "\n" not in str(failed.value)
    assert "hidden" not in str(failed.value)


def test_a_caller_with_an_event_loop_of_its_own_is_answered() -> None:
    async def notebook(model: EndpointModel) -> str:
        return model.complete(["hi"], 8)[0].text

    with serve(lambda body: "ok") as server:
        assert asyncio.run(notebook(EndpointModel(config(server.url)))) == "ok"


def test_reasoning_stands_in_front_of_the_answer() -> None:
    for text, answer in {
        "<think>He asks.\nno\n</think>\n\nyes": "yes",
        "so it is harmful</think> unsafe\nS1": "unsafe\nS1",
        "<think>one</think>no<think>two</think>yes": "yes",
        "[THINK]hm[/THINK]no": "no",
        "<Thinking>never closed": "",
        "yes, since <think> is a tag": "yes, since <think> is a tag",
        "plain": "plain",
    }.items():
        assert after_reasoning(text) == answer


def test_a_date_without_the_servers_clock_is_held_against_ours() -> None:
    headers = httpx.Headers({"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT"})
    assert wanted_wait(headers, 30.0) == 90.0
    assert wanted_wait(httpx.Headers({}), 0.0) is None


def test_a_readers_budget_is_the_judges_own_setting() -> None:
    reader = {"model": "scripted", "backend": "endpoint", "endpoint": {"url": "http://localhost"}}
    with pytest.raises(ValidationError, match="writes nothing"):
        JudgeConfig.model_validate({"name": "refusal-rules", "max_tokens": 9})
    assert JudgeConfig.model_validate({"name": "harmbench", "reader": reader, "max_tokens": 9}).max_tokens == 9
