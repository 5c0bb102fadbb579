"""Where a chat template is cut: at the user message and at the response, so that the pieces are the tokens of the whole.

A cut has two unknowns. Which of the template's spaces belongs to the text: in `[INST] Hello`, a tokenizer with word-start tokens
makes one token of the space and "Hello", which counts as the message's, so the cut is before the space. And whether the text
counts as continued (`dat_ray.models.tokenizer_forms`). Both are tried, the shortest space first, until the pieces of a few
probes equal the tokens of their whole rendering; where none does, the template is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dat_ray.data.control import is_blank
from dat_ray.errors import InputError
from dat_ray.models.template import ChatTemplate
from dat_ray.models.tokenizer_forms import TokenizerForms

_USER, _RESPONSE = "dat-user-message-slot", "dat-response-slot"
# Ordinary texts with different beginnings and ends. A response's end is not cut, so that those have letters there.
MESSAGES = ("How are you? I have 12 of them.", "2 plus 2", "what (and when)?")
ANSWERS = ("Sure, here you are", "12 of them", "it is so")
# Most whitespace between a generation prompt and a response; more is the layout of a template's file, which came along.
_LONGEST_GAP = 2
_REMEDY = "give a template that joins no word to its own text in chat_template, or use a model with a byte-level tokenizer"


@dataclass(frozen=True)
class Slot:
    """How a text is tokenized in its place.

    Attributes:
        lead: whitespace of the template that belongs to the text.
        continued: see `Pieces.ids`.
    """

    lead: str
    continued: bool

    def ids(self, pieces: TokenizerForms, text: str) -> list[int]:
        """Token ids of the text, the lead included."""
        return pieces.ids(self.lead + text, continued=self.continued)


class PromptCut:
    """The cut at the user message.

    Args:
        tokenizer: of the model.
        template: its chat template.
        pieces: its tokenizer's two forms.

    Attributes:
        before_ids: tokens before the message.

    Raises:
        InputError: the template fails, or cannot be cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, pieces: TokenizerForms) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces
        rendered = template.prompt(_USER)
        self._before, _, self._between = rendered.partition(_USER)
        # Many templates strip the message; the ids must not differ from theirs for a padded one.
        padded_before, _, padded_between = template.prompt(f" {_USER} ").partition(_USER)
        self._strips_left, self._strips_right = padded_before == self._before, padded_between == self._between
        slot = self._slot(template) if rendered.count(_USER) == 1 else None
        if slot is None:
            raise template.error(f"cannot be cut at the user message with the same tokens: {_REMEDY}")
        self._user = slot
        self.before_ids = self._before_ids(slot.lead)
        self._refuse_plain_tokens(template)

    def user_ids(self, user: str) -> list[int]:
        """Token ids of a user message; special tokens written in it are plain text."""
        if self._strips_left:
            user = user.lstrip()
        if self._strips_right:
            user = user.rstrip()
        return self._user.ids(self._pieces, user)

    def between_ids(self, tail: str = "") -> list[int]:
        """Token ids behind the message, without the `tail` of the generation prompt's text."""
        start = [*self.before_ids, *self.user_ids(MESSAGES[0])]
        return self._pieces.whole(self._before + MESSAGES[0] + self._between.removesuffix(tail))[len(start) :]

    def _before_ids(self, lead: str) -> list[int]:
        return self._pieces.whole(self._before.removesuffix(lead))

    def _slot(self, template: ChatTemplate) -> Slot | None:
        wholes = [self._pieces.whole(template.prompt(message)) for message in MESSAGES]
        for slot in slots(self._before, ""):
            starts = [[*self._before_ids(slot.lead), *slot.ids(self._pieces, message)] for message in MESSAGES]
            rests = [whole[len(start) :] for start, whole in zip(starts, wholes, strict=True)]
            if all(start + rests[0] == whole for start, whole in zip(starts, wholes, strict=True)):
                return slot
        return None

    def _refuse_plain_tokens(self, template: ChatTemplate) -> None:
        added = self._tokenizer.added_tokens_decoder
        used = {*self.before_ids, *self.between_ids()}
        others = {str(added[i]) for i in used - self._pieces.control.keys() if i in added}
        plain = sorted(token for token in others if not is_blank(token))
        if plain:
            raise template.error(
                f"puts {plain} together, which are not marked as special, so a user message could contain them: "
                "set special = true for them in tokenizer.json"
            )


class ResponseCut:
    """The cut at the response: what precedes it must be the generation prompt, or it would be scored outside its turn.

    Args:
        tokenizer: of the model.
        template: its chat template.
        pieces: its tokenizer's two forms.
        prompt: the cut at the user message.

    Attributes:
        slot: of the response.
        tail: end of the generation prompt's text that counts as the response's.
        between_ids: tokens from behind the user message to the response.
        end_id: the special token behind the response; None where none follows.

    Raises:
        InputError: the template fails, opens another turn than a response is in, or cannot be cut.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, pieces: TokenizerForms, prompt: PromptCut
    ) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces
        opened = template.prompt(MESSAGES[0])
        gap = _gap(template, opened)
        wholes = [pieces.whole(opened + gap + answer) for answer in ANSWERS]
        for slot in slots(opened, gap):
            tail = slot.lead.removesuffix(gap)
            between = prompt.between_ids(tail)
            start = [*prompt.before_ids, *prompt.user_ids(MESSAGES[0]), *between]
            if all([*start, *slot.ids(pieces, answer)] == whole for answer, whole in zip(ANSWERS, wholes, strict=True)):
                break
        else:
            raise template.error(f"cannot be cut at the response with the same tokens: {_REMEDY}")
        self.slot, self.tail, self.between_ids = slot, tail, between
        self.end_id = self._end(template, wholes[0])

    def _end(self, template: ChatTemplate, answered: list[int]) -> int | None:
        """The first token behind a response that is no whitespace, if it is special: `</s>` in Llama 2's "Sure </s>"."""
        closed = self._pieces.whole(template.turn(MESSAGES[0], ANSWERS[0]))
        added, named = self._tokenizer.added_tokens_decoder, self._tokenizer.all_special_ids
        if closed[: len(answered)] != answered:
            return None
        for token in closed[len(answered) :]:
            if token in named or (token in added and added[token].special):
                return token
            if str(self._tokenizer.decode([token])).strip():
                return None
        return None


def slots(before: str, gap: str) -> Iterator[Slot]:
    """Ways to tokenize what follows `before` and the whitespace `gap`, which belongs to it in any case."""
    spaces = before[len(before.rstrip()) :]
    for width in range(len(spaces) + 1):
        lead = spaces[len(spaces) - width :] + gap
        # A text with a space before it reads on; one without may as well be the tokenizer's first word.
        for continued in (True, False) if lead else (False, True):
            yield Slot(lead, continued)


def _gap(template: ChatTemplate, opened: str) -> str:
    """Whitespace that a finished conversation has between the generation prompt and the response."""
    closed = template.turn(MESSAGES[0], _RESPONSE)
    if closed.count(_RESPONSE) != 1:
        raise template.error("does not write an assistant's message as it is: give one that does in chat_template")
    start = closed.partition(_RESPONSE)[0]
    gap = start.removeprefix(opened)
    if start.startswith(opened) and not gap.strip() and len(gap) <= _LONGEST_GAP:
        return gap
    raise _other_turn(template, opened, start)


def _other_turn(template: ChatTemplate, opened: str, start: str) -> InputError:
    """Says in which text the generation prompt and a response's own turn differ, and what to do about it."""
    same = next((i for i, (a, b) in enumerate(zip(opened, start, strict=False)) if a != b), min(len(opened), len(start)))
    remedy = "give one that opens the assistant's turn for add_generation_prompt in chat_template"
    if "think" in opened[same:] + start[same:]:
        remedy = "use a model that does not think, or give a template without in chat_template"
        if "enable_thinking" in template.text and "enable_thinking" not in template.options:
            remedy = "set template_options to {enable_thinking: false}"
    return template.error(f"has {start[same:]!r} before a response where its generation prompt has {opened[same:]!r}: {remedy}")
