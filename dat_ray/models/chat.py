"""One conversation turn as token ids, with exact spans of the user message and the response.

The chat template is cut where the user message goes, and the pieces are tokenized one by one:

    before | user message | between | response

so a span never shares a token with the template, and text can never become a control token: in the user message
and the response, `<|im_end|>` is a handful of ordinary tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from dat_ray.data.control import plain_ids
from dat_ray.errors import InputError
from dat_ray.models.fit import UNLIMITED, Limits

_SLOT = "dat-user-message-slot"
_PROBE = "How are you? I have 12 of them."


@dataclass(frozen=True)
class Encoded:
    """A prompt and its response.

    Attributes:
        ids: all tokens, template included.
        user_span: [low, high) of the user message in `ids`.
        response_span: [low, high) of the response in `ids`; its high is `len(ids)`.
        beyond_limit, beyond_room: tokens of the response's end that are not in the row; see `dat_ray.models.fit.Fit`.
    """

    ids: list[int]
    user_span: tuple[int, int]
    response_span: tuple[int, int]
    beyond_limit: int = 0
    beyond_room: int = 0


class ChatFormat:
    """The chat template of one tokenizer, for a single user message.

    Args:
        tokenizer: of an instruct model.
        system_prompt: a system message before the user's; None leaves it to the template.

    Raises:
        InputError: no chat template, one that refuses the system prompt, or one that cannot be cut exactly.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None) -> None:
        self._tokenizer, self._system_prompt = tokenizer, system_prompt
        if not tokenizer.chat_template:
            raise InputError("target.model", tokenizer.name_or_path, "has no chat template: use an instruct model")
        rendered = self._render(_SLOT)
        before, _, between = rendered.partition(_SLOT)
        # Many templates strip the message; the ids must not differ from theirs for a padded one.
        padded_before, _, padded_between = self._render(f" {_SLOT} ").partition(_SLOT)
        self._strips_left, self._strips_right = padded_before == before, padded_between == between
        self._before = self._template_ids(before)
        self._between = self._template_ids(between)
        if rendered.count(_SLOT) != 1 or self.prompt_ids(_PROBE) != self._template_ids(self._render(_PROBE)):
            raise InputError(
                "target.model",
                tokenizer.name_or_path,
                "its chat template cannot be cut at the user message with the same tokens: use a model with a "
                "byte-level tokenizer and one slot for the message",
            )
        added = tokenizer.added_tokens_decoder
        plain = sorted({str(added[i]) for i in {*self._before, *self._between} if i in added and not added[i].special})
        if plain:
            raise InputError(
                "target.model",
                tokenizer.name_or_path,
                f"its template uses {plain} but does not mark them as special, so a user message could contain them: "
                "set special = true for them in tokenizer.json",
            )

    def segments(self) -> tuple[list[int], list[int]]:
        """Token ids before the user message, and between it and the response."""
        return list(self._before), list(self._between)

    def user_ids(self, user: str) -> list[int]:
        """Token ids of a user message alone; special tokens written in it are plain text."""
        if self._strips_left:
            user = user.lstrip()
        if self._strips_right:
            user = user.rstrip()
        return self._text_ids(user)

    def prompt_ids(self, user: str) -> list[int]:
        """Token ids of the conversation up to where the response begins.

        They equal those of the rendered template, except where text is kept apart from the template: special tokens
        in the message stay text, and whitespace at the message's start does not merge with the template's newline.
        """
        return [*self._before, *self.user_ids(user), *self._between]

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response, or of the beginning of one; special tokens written in it are plain text."""
        return self._text_ids(response)

    def end_of_turn(self) -> int:
        """The special token that the template puts behind a response.

        Raises:
            InputError: the template has none.
        """
        messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _SLOT}]
        behind = str(self._tokenizer.apply_chat_template(messages, tokenize=False)).partition(_SLOT)[2]
        first = self._template_ids(behind)[:1]
        if not first or first[0] not in self._tokenizer.all_special_ids:
            raise InputError(
                "training.end_of_turn", "refusal", "the target's chat template ends a response with no special token: use none"
            )
        return first[0]

    def encode(self, user: str, response: str, limits: Limits = UNLIMITED, *, closed: bool = False) -> Encoded | None:
        """Prompt and response as one row: the prompt whole, the response cut at its end; see `dat_ray.models.fit`.

        Args:
            user: the user message.
            response: of the assistant.
            limits: of the row; none by default.
            closed: the response ends with the end-of-turn token, which counts as its last token.

        Returns:
            The row, or None where the prompt leaves too little room for a response; never None without a limit.

        Raises:
            InputError: a text without a character, a template that leaves no room for any prompt, or one without an
                end-of-turn token.
        """
        template = len(self._before) + len(self._between)
        if limits.tokens is not None and limits.tokens < template + 1 + limits.least:
            remedy = f"with this chat template it must be at least {template + 1 + limits.least}"
            raise InputError("training.max_tokens", limits.tokens, remedy)
        prompt, answer = _with_text("prompt", user, self.user_ids), _with_text("response", response, self.response_ids)
        if closed:
            answer = [*answer, self.end_of_turn()]
        return _row(self._before, prompt, self._between, answer, limits)

    def _render(self, user: str) -> str:
        messages = [{"role": "user", "content": user}]
        if self._system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise InputError(
                "target.system_prompt", self._system_prompt, f"the chat template refuses it ({error}): leave it out"
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def _template_ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids

    def _text_ids(self, text: str) -> list[int]:
        return plain_ids(self._tokenizer, text)


class PlainFormat:
    """No template: the text as it is, after the tokenizer's own beginning-of-text token.

    For judges that are trained on one prompt and not on conversations. Special tokens written in the prompt count as such,
    because such prompts contain them: whoever puts other people's text into one takes them out first
    (`dat_ray.data.control.take_out`).

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def prompt_ids(self, user: str) -> list[int]:
        """Token ids of the text, the beginning-of-text token once."""
        ids = self._tokenizer(user, add_special_tokens=True, split_special_tokens=False).input_ids
        bos = self._tokenizer.bos_token_id
        # A prompt that spells the token out, as rendered templates do, would have it twice.
        return ids[1:] if ids[:2] == [bos, bos] else ids

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response; special tokens written in it are plain text."""
        return plain_ids(self._tokenizer, response)

    def encode(self, user: str, response: str, limits: Limits = UNLIMITED) -> Encoded | None:
        """Prompt and response as one row, as `ChatFormat.encode`; the whole prompt counts as the user message."""
        prompt, answer = _with_text("prompt", user, self.prompt_ids), _with_text("response", response, self.response_ids)
        return _row([], prompt, [], answer, limits)


def _with_text(name: str, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Token ids of a text that must say something.

    Raises:
        InputError: it is empty or blank: a row without it has no condition, or no log-probability.
    """
    ids = encode(text) if text.strip() else []
    if not ids:
        raise InputError(name, text, "is empty: give a text, or remove the row")
    return ids


def _row(before: list[int], user: list[int], between: list[int], response: list[int], limits: Limits) -> Encoded | None:
    start = len(before) + len(user) + len(between)
    fit = limits.fit(start, len(response))
    if fit is None:
        return None
    return Encoded(
        ids=[*before, *user, *between, *response[: fit.kept]],
        user_span=(len(before), len(before) + len(user)),
        response_span=(start, start + fit.kept),
        beyond_limit=fit.beyond_limit,
        beyond_room=fit.beyond_room,
    )
