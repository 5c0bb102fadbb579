"""A chat model behind a server that speaks OpenAI's chat completions: as an attacker, as a judge's reader, or under attack.

A request that fails is tried again, then becomes its row's own error: the other rows keep their place and their answers.
Requests run on an event loop, which ends one at its deadline whatever the server is doing: connecting, or sending bit by bit.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx

from dat_ray.config.models import TargetConfig
from dat_ray.engines.base import Completion, require_seeds
from dat_ray.engines.chat_reply import Problem, excerpt, read_reply, wanted_wait
from dat_ray.errors import DatError, InputError
from dat_ray.secrets import declare_secret

# Seconds before the second try; each further one waits twice as long, up to the last.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Bytes of one reply; an answer of a model is far smaller.
LARGEST_REPLY = 64 * 2**20
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
Message = dict[str, str]


class Clock:
    """Time as requests see it. A test passes one of its own."""

    def now(self) -> float:
        """Seconds, never set back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


class EndpointModel:
    """Chat completions of a server.

    Args:
        config: with `endpoint`; `model` is the server's name for the model.
        clock: for waits between tries.

    Raises:
        InputError: the environment variable that should hold the key is empty, or one that names a proxy cannot be followed.
    """

    def __init__(self, config: TargetConfig, clock: Clock | None = None) -> None:
        assert config.endpoint is not None, "the config's validator asks for it"
        self.name = config.model
        self._config, self._endpoint = config, config.endpoint
        headers = {}
        if self._endpoint.api_key_env:
            headers["Authorization"] = f"Bearer {api_key(self._endpoint.api_key_env)}"
        self._headers = headers
        self._url = self._endpoint.url.rstrip("/") + "/chat/completions"
        self._clock = clock or Clock()
        # When a server that asked to wait takes requests again: the wait is that of all rows.
        self._open_at = 0.0
        self._client()  # what is wrong with it is said now

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[Completion]:
        """See `TargetModel`. Whether seeds repeat an answer is up to the server.

        Raises:
            InputError: `prefills` are given: the protocol has no place for them.
        """
        if prefills:
            raise InputError("evaluation.attacks", "prefilling", "an endpoint cannot begin the model's turn: leave it out")
        system = [] if self._config.system_prompt is None else [{"role": "system", "content": self._config.system_prompt}]
        turns = histories or [()] * len(prompts)
        conversations = [[*system, *_messages([*history, prompt])] for history, prompt in zip(turns, prompts, strict=True)]
        return self.converse(conversations, max_new_tokens, temperature, seeds)

    def converse(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Answers to whole conversations, one each, in order; a failed one carries its `error`."""
        row_seeds: list[int] | list[None] = require_seeds(temperature, seeds, len(conversations)) or [None] * len(conversations)
        rows = list(zip(conversations, row_seeds, strict=True))
        return _run(self._answer_all([self._body(list(one), max_new_tokens, temperature, seed) for one, seed in rows]))

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Not to be had.

        Raises:
            DatError: always.
        """
        raise DatError(f"the endpoint's model {self.name} gives no likelihood of a response: use the backend vllm or torch")

    def _body(self, messages: list[Message], max_new_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            self._endpoint.token_limit: max_new_tokens,
            "temperature": temperature,
        }
        if self._config.template_options:
            # The name under which vLLM and SGLang take them; a server that takes none says so in its answer.
            body["chat_template_kwargs"] = self._config.template_options
        if seed is not None:
            body["seed"] = seed % (1 << 31)  # some servers read 32 bits
        for name in self._endpoint.omit:
            body.pop(name, None)
        return body | self._endpoint.extra_body

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        try:
            # Deadlines are this class's own: httpx has none for a whole request.
            return httpx.AsyncClient(timeout=None, headers=self._headers, limits=limits, verify=_tls())
        except UnicodeError:
            raise  # of a key, not of a proxy
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise _bad_proxy(error) from error

    async def _answer_all(self, bodies: Sequence[dict[str, Any]]) -> list[Completion]:
        slots = asyncio.Semaphore(self._endpoint.concurrency)
        async with self._client() as client:

            async def answer(body: dict[str, Any]) -> Completion:
                async with slots:
                    return await self._answer(client, body)

            return list(await asyncio.gather(*map(answer, bodies)))

    async def _answer(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Completion:
        for attempt in range(self._endpoint.retries + 1):
            # Spread out, so that requests that failed together do not come back together.
            pause = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0) if attempt else 0.0
            pause = max(pause, self._open_at - self._clock.now())
            if pause > 0:
                await self._clock.sleep(pause)
            found, headers = await self._try(client, body)
            if isinstance(found, Completion):
                return found
            problem = found
            wait = wanted_wait(headers, time.time()) if problem.passing else None
            longest = self._endpoint.longest_wait
            if wait is not None and longest is not None and wait > longest:
                allowed = f"endpoint.longest_wait = {longest:g}"
                return self._failed(f"{problem.text}; it asks to wait {wait:g} s, {allowed} allows less")
            if wait is not None:
                self._open_at = max(self._open_at, self._clock.now() + wait)
            if not problem.passing:
                break
        return self._failed(problem.text + _remedy(problem, body))

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Completion | Problem, Mapping[str, str]]:
        """One request, and the headers of its reply."""
        try:
            async with asyncio.timeout(self._endpoint.timeout), client.stream("POST", self._url, json=body) as reply:
                received = bytearray()
                async for part in reply.aiter_bytes():
                    received += part
                    if len(received) > LARGEST_REPLY:
                        return Problem(f"an answer of more than {LARGEST_REPLY / 2**20:.1f} MiB", False), {}
                return read_reply(reply.status_code, bytes(received)), reply.headers
        except TimeoutError:
            return Problem(f"no whole answer within endpoint.timeout = {self._endpoint.timeout or math.inf:g} s", True), {}
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Problem(excerpt(f"{type(error).__name__}: {error}".strip(": ")), True), {}

    def _failed(self, problem: str) -> Completion:
        return Completion("", 0, False, f"{self._url}: {problem}")


def _messages(turns: Sequence[str]) -> list[Message]:
    """Turns of the user and of the model, the user's first."""
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


@cache
def _tls() -> ssl.SSLContext:
    """Reading all certificates takes a noticeable time, so once a process."""
    return httpx.create_ssl_context()


def _run(answers: Any) -> list[Completion]:
    """Runs an event loop to its end; in a thread of its own where the caller's has one already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(answers)
    with ThreadPoolExecutor(1, "endpoint") as thread:
        completions: list[Completion] = thread.submit(asyncio.run, answers).result()
        return completions


def _remedy(problem: Problem, body: Mapping[str, Any]) -> str:
    """What to set where the server does not take a field of the request."""
    if not problem.text.startswith(("status 400", "status 422")):
        return ""
    if "max_tokens" in body and "max_completion_tokens" in problem.text:
        return "; set endpoint.token_limit to max_completion_tokens"
    refused = [name for name in ("temperature", "seed") if name in body and re.search(rf"\b{name}\b", problem.text)]
    return f"; if the server does not take {refused[0]}, name it in endpoint.omit" if refused else ""


def api_key(variable: str, field: str = "endpoint.api_key_env") -> str:
    """The key that an environment variable holds, as a header takes it; from here on it is a secret of this process.

    Args:
        variable: its name.
        field: of the recipe, to name in an error.

    Raises:
        InputError: it is empty, or holds what is no key. The value is not repeated.
    """
    declare_secret(variable)
    # Files end with a line break, and with it what a secret store puts into a variable.
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(field, variable, "names an environment variable that is empty here: set it where the engines run")
    # The HTTP library repeats a header that it refuses, in its error.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(field, variable, "names a variable whose value is no key: it may hold no space, line break or accent")
    return key


def _bad_proxy(error: Exception) -> InputError:
    names = [name for upper in PROXIES for name in (upper, upper.lower()) if os.environ.get(name)]
    socks = [name for name in names if os.environ[name].lower().startswith("socks")]
    name = (socks or names or ["HTTPS_PROXY"])[0]
    if isinstance(error, ImportError) and socks:
        remedy = (
            "a SOCKS proxy needs the package socksio: pip install socksio, or unset the variable, or name the server in NO_PROXY"
        )
    else:
        remedy = "is no proxy that can be used: write http://host:port, or unset it"
    return InputError(name, os.environ.get(name), remedy)
