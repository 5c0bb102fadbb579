"""The endpoint client against a scripted server: order, retries, time-outs, rubbish."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from dat_ray.config.models import TargetConfig
from dat_ray.engines import endpoint
from dat_ray.engines.endpoint import EndpointModel
from dat_ray.errors import DatError, InputError
from tests.unit.engines.scripted_server import serve


def config(url: str, **fields: Any) -> TargetConfig:
    section = {"url": url, "timeout": 60.0, "retries": 1, **fields}
    return TargetConfig.model_validate({"model": "scripted", "backend": "endpoint", "endpoint": section})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


def last(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def test_as_many_answers_as_questions_in_order_whatever_fails() -> None:
    tries: Counter[str] = Counter()

    def script(body: dict[str, Any]) -> str | tuple[int, str] | None:
        asked = last(body)
        tries[asked] += 1
        match asked:
            case "hangs":
                return None
            case "busy once":
                return (503, "busy") if tries[asked] == 1 else "at last"
            case "always broken":
                return (500, "broken\ninside")
            case "not allowed":
                return (401, "no key")
            case "rubbish":
                return (200, "<html>")
            case "no choices":
                return (200, json.dumps({"choices": []}))
            case "no text":
                return (200, json.dumps({"choices": [{"message": {"content": None}}]}))
        return asked.upper()

    prompts = ["one", "hangs", "busy once", "always broken", "not allowed", "rubbish", "no choices", "no text", "two"]
    with serve(script) as server:
        found = EndpointModel(config(server.url, timeout=3.0)).complete(prompts, 8)
    by_prompt = dict(zip(prompts, found, strict=True))
    assert [by_prompt[p].text for p in ("one", "busy once", "two")] == ["ONE", "at last", "TWO"]
    assert all(by_prompt[p].error is None for p in ("one", "busy once", "two"))
    for prompt, reason in {
        "hangs": "no whole answer within endpoint.timeout = 3 s",
        "always broken": "status 500: broken inside",
        "not allowed": "status 401",
        "rubbish": "no chat completion",
        "no choices": "no chat completion",
        "no text": "without text",
    }.items():
        assert by_prompt[prompt].text == ""
        assert reason in (by_prompt[prompt].error or ""), prompt
    assert (tries["always broken"], tries["hangs"], tries["not allowed"], tries["one"]) == (2, 2, 1, 1)


def test_the_request_carries_key_seed_temperature_and_system_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_KEY", "secret")
    with serve(lambda body: "yes") as server:
        settings = config(server.url, api_key_env="SCRIPTED_KEY").model_copy(update={"system_prompt": "be brief"})
        EndpointModel(settings).complete(["hi"], 9, temperature=0.7, seeds=[5])
    (asked,) = server.asked
    assert (asked["path"], asked["authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"]) == ("scripted", 9, 0.7, 5)
    assert [message["content"] for message in asked["messages"]] == ["be brief", "hi"]


def test_a_conversation_is_sent_turn_by_turn_behind_the_system_prompt() -> None:
    with serve(lambda body: "yes") as server:
        settings = config(server.url).model_copy(update={"system_prompt": "be brief"})
        EndpointModel(settings).complete(["and you?", "alone"], 9, histories=[("how are you?", "fine"), ()])
    asked = sorted(server.asked, key=lambda one: -len(one["messages"]))
    assert [(message["role"], message["content"]) for message in asked[0]["messages"]] == [
        ("system", "be brief"),
        ("user", "how are you?"),
        ("assistant", "fine"),
        ("user", "and you?"),
    ]
    assert [message["content"] for message in asked[1]["messages"]] == ["be brief", "alone"]


def test_template_options_go_to_the_server_which_renders() -> None:
    with serve(lambda body: "yes") as server:
        plain = config(server.url)
        EndpointModel(plain).complete(["hi"], 9)
        EndpointModel(plain.model_copy(update={"template_options": {"enable_thinking": False}})).complete(["hi"], 9)
    assert "chat_template_kwargs" not in server.asked[0]
    assert server.asked[1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_is_not_there_is_each_rows_error() -> None:
    with serve(lambda body: "yes") as server:
        gone = server.url
    (found,) = EndpointModel(config(gone)).complete(["hi"], 8)
    assert "ConnectError" in (found.error or "")


def test_what_an_endpoint_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EndpointModel(config("http://127.0.0.1:9/v1"))
    with pytest.raises(InputError, match="prefilling"):
        model.complete(["hi"], 8, prefills=["Sure"])
    with pytest.raises(DatError, match="no likelihood"):
        model.logprob(["hi"], ["yes"])
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    with pytest.raises(InputError, match="ABSENT_KEY"):
        EndpointModel(config("http://127.0.0.1:9/v1", api_key_env="ABSENT_KEY"))


def test_a_process_that_asks_a_server_loads_no_model_library() -> None:
    # Every actor of a judge or an attacker behind a server would pay seconds and hundreds of megabytes for them.
    modules = "dat_ray.engines.endpoint, dat_ray.engines.workers, dat_ray.engines.factory, dat_ray.evaluation.attacker"
    code = f"import sys, {modules}\nassert not {{'torch', 'transformers', 'vllm'}} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
