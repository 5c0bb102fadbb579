"""One conversation turn as token ids, with exact spans of the user message and the response.

The chat template is cut where the user message and the response go (`dat_ray.models.cuts`), and the pieces are tokenized one
by one:

    before | user message | between | response

so that a piece is the same whatever stands beside it, and text can never become a control token: in the user message and the
response, `<|im_end|>` is a handful of ordinary tokens. The pieces make up the tokens of the whole rendering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dat_ray.config.models import TemplateConfig
from dat_ray.errors import InputError
from dat_ray.models.conversation import ConversationCut
from dat_ray.models.cuts import PromptCut, ResponseCut
from dat_ray.models.fit import UNLIMITED, Limits
from dat_ray.models.template import ChatTemplate
from dat_ray.models.tokenizer_forms import TokenizerForms


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
    """The chat template of one tokenizer, for a user message, the turns before it, and its response.

    Args:
        tokenizer: of an instruct model.
        settings: system prompt, and what the recipe says about the template.

    Raises:
        InputError: no chat template, one that fails, one that cannot be cut exactly, or one whose generation prompt is not
            what stands before a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: TemplateConfig | None = None) -> None:
        template = ChatTemplate(tokenizer, settings)
        self._pieces = TokenizerForms(tokenizer, template.text)
        self._prompt = PromptCut(tokenizer, template, self._pieces)
        self._response = ResponseCut(tokenizer, template, self._pieces, self._prompt)
        self._before, self._between = self._prompt.before_ids, self._response.between_ids
        self._conversation = ConversationCut(template, self._pieces, self._response)

    def segments(self) -> tuple[list[int], list[int]]:
        """Token ids before the user message, and between it and the response."""
        return list(self._before), list(self._between)

    def user_ids(self, user: str) -> list[int]:
        """Token ids of a user message alone; special tokens written in it are plain text.

        Where the tokenizer joins the template's space to the message's first word, they begin with that token.
        """
        return self._prompt.user_ids(user)

    def prompt_ids(self, user: str, history: Sequence[str] = ()) -> list[int]:
        """Token ids of the conversation up to where the response begins.

        They equal those of the rendered template, except where text is kept apart from the template: special tokens
        in the message stay text, and whitespace at the message's start does not merge with the template's newline. A space
        that a template puts behind its generation prompt is left to the response, where the tokenizer joins the two.

        Args:
            user: the last user message.
            history: earlier turns, of the user and of the model in turn.
        """
        if history:
            return self._conversation.prompt_ids([*history, user])
        return [*self._before, *self.user_ids(user), *self._between]

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response, or of the beginning of one; special tokens written in it are plain text.

        They are those that follow the prompt in the whole rendering: after Llama 2's `[/INST]`, "Sure" begins with a space.
        """
        return self._response.slot.ids(self._pieces, response) if response else []

    def response_text(self, ids: list[int], *, begun: bool = False) -> str:
        """Text of generated tokens: `response_ids` of it gives them back.

        Args:
            ids: of a response.
            begun: they go on with a response whose beginning stands before them.
        """
        if begun:
            return self.text_after(ids)
        slot = self._response.slot
        return self._pieces.text(ids, continued=slot.continued).removeprefix(slot.lead)

    def text_after(self, ids: list[int]) -> str:
        """Text of tokens that stand behind other text, a space at their start included."""
        return self._pieces.text(ids, continued=True)

    @property
    def end_id(self) -> int | None:
        """The special token that the template puts behind a response, if any."""
        return self._response.end_id

    def end_of_turn(self) -> int:
        """The special token that the template puts behind a response.

        Raises:
            InputError: the template has none.
        """
        if self.end_id is None:
            raise InputError(
                "training.end_of_turn",
                "refusal, retain or all",
                "the target's chat template ends a response with no special token: use none",
            )
        return self.end_id

    def check_room(self, limits: Limits) -> None:
        """Raises InputError where rows of a limited length have no room for any prompt with its response."""
        least = len(self._before) + len(self._between) + 1 + limits.least
        if limits.tokens is not None and limits.tokens < least:
            raise InputError("training.max_tokens", limits.tokens, f"with this chat template it must be at least {least}")

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
        self.check_room(limits)
        prompt, answer = _with_text("prompt", user, self.user_ids), _with_text("response", response, self.response_ids)
        if closed:
            answer = [*answer, self.end_of_turn()]
        return _row(self._before, prompt, self._between, answer, limits)


def prompt_segments(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids before a user message and behind it, for those who write a response of their own there.

    Raises:
        InputError: no chat template, one that fails, or one that cannot be cut at the user message.
    """
    template = ChatTemplate(tokenizer)
    cut = PromptCut(tokenizer, template, TokenizerForms(tokenizer, template.text))
    return cut.before_ids, cut.between_ids()


class PlainFormat:
    """No template: the text as it is, after the tokenizer's own beginning-of-text token.

    For judges that are trained on one prompt and not on conversations. Special tokens written in the prompt count as such,
    because such prompts contain them: whoever puts other people's text into one takes them out first
    (`dat_ray.data.control.take_out`).

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._pieces = tokenizer, TokenizerForms(tokenizer)

    def prompt_ids(self, user: str, history: Sequence[str] = ()) -> list[int]:
        """Token ids of the text, the beginning-of-text token once.

        Raises:
            InputError: there are earlier turns, for which plain text has no form.
        """
        if history:
            raise InputError("target.template", "none", "has no turns, so a conversation has no form: use the chat template")
        ids = self._tokenizer(user, add_special_tokens=True, split_special_tokens=False).input_ids
        bos = self._tokenizer.bos_token_id
        # A prompt that spells the token out, as rendered templates do, would have it twice.
        without_second: list[int] = ids[1:] if ids[:2] == [bos, bos] else ids
        return without_second

    def response_ids(self, response: str) -> list[int]:
        """Token ids of a response, which goes on with the prompt's text; special tokens written in it are plain text."""
        return self._pieces.ids(response, continued=True)

    def response_text(self, ids: list[int], *, begun: bool = False) -> str:
        """Text of generated tokens; see `ChatFormat.response_text`."""
        return self._pieces.text(ids, continued=begun)

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
