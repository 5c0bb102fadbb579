"""A chat model behind a server that speaks OpenAI's chat completions: as an attacker, as a judge's reader, or under attack.

A request that fails is tried again, then becomes its row's own error: the other rows keep their place and their answers.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from dat_ray.config.models import TargetConfig
from dat_ray.engines.base import Completion
from dat_ray.engines.target_text import require_seeds
from dat_ray.errors import DatError, InputError

# Seconds before the second try; each further one waits twice as long, up to the last.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Statuses that another try may mend.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
Message = dict[str, str]


class EndpointModel:
    """Chat completions of a server.

    Args:
        config: with `endpoint`; `model` is the server's name for the model.

    Raises:
        InputError: the environment variable that should hold the key is empty.
    """

    def __init__(self, config: TargetConfig) -> None:
        assert config.endpoint is not None, "the config's validator asks for it"
        self.name = config.model
        self._config, self._endpoint = config, config.endpoint
        headers = {}
        if self._endpoint.api_key_env:
            key = os.environ.get(self._endpoint.api_key_env)
            if not key:
                remedy = "names an environment variable that is empty here: set it where the engines run"
                raise InputError("endpoint.api_key_env", self._endpoint.api_key_env, remedy)
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        self._client = httpx.Client(timeout=self._endpoint.timeout, headers=headers, limits=limits)
        self._url = self._endpoint.url.rstrip("/") + "/chat/completions"

    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        prefills: Sequence[str] | None = None,
    ) -> list[Completion]:
        """See `TargetModel`. Whether seeds repeat an answer is up to the server.

        Raises:
            InputError: `prefills` are given: the protocol has no place for them.
        """
        if prefills:
            raise InputError("evaluation.attacks", "prefilling", "an endpoint cannot begin the model's turn: leave it out")
        system = [] if self._config.system_prompt is None else [{"role": "system", "content": self._config.system_prompt}]
        conversations = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
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
        with ThreadPoolExecutor(self._endpoint.concurrency, "endpoint") as pool:
            asked = [
                pool.submit(self._answer, list(conversation), max_new_tokens, temperature, seed)
                for conversation, seed in zip(conversations, row_seeds, strict=True)
            ]
            return [one.result() for one in asked]

    def logprob(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Not to be had.

        Raises:
            DatError: always.
        """
        raise DatError(f"the endpoint's model {self.name} gives no likelihood of a response: use the backend vllm or torch")

    def _answer(self, messages: list[Message], max_new_tokens: int, temperature: float, seed: int | None) -> Completion:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
        }
        if self._config.template_options:
            # The name under which vLLM and SGLang take them; a server that takes none says so in its answer.
            body["chat_template_kwargs"] = self._config.template_options
        if seed is not None:
            body["seed"] = seed % (1 << 31)  # some servers read 32 bits
        problem = ""
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                # Spread out, so that requests that failed together do not come back together.
                time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
            try:
                reply = self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}".strip(": ")
                continue
            if reply.status_code == 200:
                return _read(reply)
            problem = f"status {reply.status_code}: {' '.join(reply.text.split())[:200]}"
            if reply.status_code not in PASSING:
                break
        return _failed(f"{self._url}: {problem}")


def _read(reply: httpx.Response) -> Completion:
    try:
        choice = reply.json()["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        used = (reply.json().get("usage") or {}).get("completion_tokens") or 0
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return _failed(f"an answer that is no chat completion ({type(error).__name__}): {' '.join(reply.text.split())[:100]}")
    if not isinstance(text, str):
        return _failed(f"an answer without text: {str(text)[:100]}")
    return Completion(text, used if isinstance(used, int) else 0, reason != "length")


def _failed(problem: str) -> Completion:
    return Completion("", 0, False, problem)
