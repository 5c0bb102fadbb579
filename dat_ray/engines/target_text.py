"""What both backends of a target share: chat ids in, text out. One place, so that they score the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig

from dat_ray.config.models import TargetConfig
from dat_ray.engines.base import Completion
from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat, Encoded, PlainFormat
from dat_ray.models.loading import load_tokenizer
from dat_ray.utf8 import clean_text


class TargetText:
    """Tokenizer, chat template and length limits of one target.

    Args:
        config: of the target.
        folder: where its tokenizer and generation config lie.

    Attributes:
        stop_ids: tokens that end an answer: the tokenizer's, those of the model's generation config, the template's.
        pad_id: a token to fill up batches with; it is never read.
    """

    def __init__(self, config: TargetConfig, folder: str) -> None:
        self._max_model_len = config.max_model_len
        self._tokenizer = load_tokenizer(folder, "target.model")
        plain = config.template == "none"
        self._chat = PlainFormat(self._tokenizer) if plain else ChatFormat(self._tokenizer, config)
        closing = self._chat.end_id if isinstance(self._chat, ChatFormat) else None
        self.stop_ids = _stop_ids(folder, self._tokenizer.eos_token_id, closing)
        if not self.stop_ids:
            raise InputError("target.model", config.model, "neither tokenizer nor generation config names an end token")
        self.pad_id = self.stop_ids[0]

    def prompt_ids(
        self,
        prompts: Sequence[str],
        prefills: Sequence[str] | None = None,
        histories: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Chat ids of each prompt, up to where the answer begins, or with the given beginning of the answer.

        Args:
            prompts: one a row.
            prefills: what each answer begins with.
            histories: earlier turns of each conversation.

        Raises:
            InputError: a prompt leaves no room for one token of an answer.
        """
        begun = prefills or [""] * len(prompts)
        turns = histories or [()] * len(prompts)
        rows = [
            self._chat.prompt_ids(prompt, history) + self._chat.response_ids(beginning)
            for prompt, history, beginning in zip(prompts, turns, begun, strict=True)
        ]
        longest = max(map(len, rows), default=0)
        if longest >= self._max_model_len:
            raise InputError("target.max_model_len", self._max_model_len, f"a prompt takes {longest} tokens: raise it")
        return rows

    def answer_budget(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Tokens that an answer may take: `max_new_tokens`, or what the model's length leaves."""
        return min(max_new_tokens, self._max_model_len - len(prompt))

    def scored(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Encoded]:
        """Prompt and response of each row, both whole, without an end-of-turn token.

        Raises:
            InputError: a text is empty, or a row is longer than the model takes: cut, its mean would be another quantity.
        """
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            row = self._chat.encode(prompt, response)
            assert row is not None, "nothing limits it"
            rows.append(row)
        longest = max((len(row.ids) for row in rows), default=0)
        # vLLM needs room for the one token that it generates beyond them.
        if longest >= self._max_model_len:
            raise InputError(
                "target.max_model_len", self._max_model_len, f"a prompt with its response takes {longest} tokens: raise it"
            )
        return rows

    def completion(self, token_ids: Sequence[int], prefill: str = "") -> Completion:
        """An answer from its generated tokens, of which the last may be a stop token; it goes on with `prefill`."""
        finished = bool(token_ids) and token_ids[-1] in self.stop_ids
        kept = list(token_ids[:-1] if finished else token_ids)
        text = self._chat.response_text(kept, begun=bool(prefill))
        return Completion(clean_text(text), len(kept), finished)


def _stop_ids(folder: str, eos: int | None, closing: int | None) -> tuple[int, ...]:
    try:
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # a model may come without one
        configured = None
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(i for i in [eos, *listed, closing] if i is not None))
