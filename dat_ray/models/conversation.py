"""Where a chat template is cut in a conversation of several turns, so that the pieces are the tokens of the whole.

As for one turn (`dat_ray.models.cuts`): each text is tokenized alone, in the form that its place asks for, and can never become
a control token. The places of a conversation of another length are others (a template may put the system prompt into the last
message, or leave reasoning out of earlier answers), so each length is cut on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dat_ray.models.cuts import ANSWERS, MESSAGES, ResponseCut, Slot, slots
from dat_ray.models.template import ChatTemplate
from dat_ray.models.tokenizer_forms import TokenizerForms

_REMEDY = "give a template that writes every turn, and joins no word to its own text, in chat_template"


@dataclass(frozen=True)
class _Place:
    """One turn's place.

    Attributes:
        before: token ids of the template before it.
        slot: how the text is tokenized there.
        strips_left, strips_right: whether the template strips the text.
    """

    before: list[int]
    slot: Slot
    strips_left: bool
    strips_right: bool

    def ids(self, pieces: TokenizerForms, text: str) -> list[int]:
        text = text.lstrip() if self.strips_left else text
        return [*self.before, *self.slot.ids(pieces, text.rstrip() if self.strips_right else text)]


class ConversationCut:
    """The cuts of conversations that end with a user's turn.

    Args:
        template: of the model.
        pieces: its tokenizer's two forms.
        response: the cut at the response of one turn: the last turn is answered in the same way.
    """

    def __init__(self, template: ChatTemplate, pieces: TokenizerForms, response: ResponseCut) -> None:
        self._template, self._pieces, self._response = template, pieces, response
        self._layouts: dict[int, tuple[list[_Place], list[int]]] = {}

    def prompt_ids(self, turns: Sequence[str]) -> list[int]:
        """Token ids of a conversation up to where the response begins.

        Args:
            turns: of the user and of the model in turn, an odd number.

        Raises:
            InputError: the template fails on several turns, leaves one out, or cannot be cut there.
        """
        if len(turns) not in self._layouts:
            self._layouts[len(turns)] = self._layout(len(turns))
        places, end = self._layouts[len(turns)]
        return [*(i for place, text in zip(places, turns, strict=True) for i in place.ids(self._pieces, text)), *end]

    def _layout(self, count: int) -> tuple[list[_Place], list[int]]:
        """Places of `count` turns, and the token ids behind the last."""
        marks = [f"dat-turn-{number}-slot" for number in range(count)]
        texts, padded = self._around(marks, marks), self._around([f" {mark} " for mark in marks], marks)
        probes = [[(ANSWERS if turn % 2 else MESSAGES)[(probe + turn) % 3] for turn in range(count)] for probe in range(3)]
        wholes = [self._pieces.whole(self._template.dialog(probe)) for probe in probes]
        done: list[list[int]] = [[] for _ in probes]
        places, shown = [], ""
        for turn in range(count):
            for slot in slots(texts[turn], ""):
                before = self._pieces.whole(shown + texts[turn].removesuffix(slot.lead))[len(done[0]) :]
                tried = [ids + before + slot.ids(self._pieces, probe[turn]) for ids, probe in zip(done, probes, strict=True)]
                if _begin(wholes, tried):
                    break
            else:
                raise self._template.error(f"cannot be cut at turn {turn + 1} of a conversation with the same tokens: {_REMEDY}")
            done, shown = tried, shown + texts[turn] + probes[0][turn]
            strips = padded[turn] == texts[turn], padded[turn + 1] == texts[turn + 1]
            places.append(_Place(before, slot, *strips))
        end = self._pieces.whole(shown + texts[-1].removesuffix(self._response.tail))[len(done[0]) :]
        if not _begin(wholes, [ids + end for ids in done]):
            raise self._template.error(f"cannot be cut behind a conversation with the same tokens: {_REMEDY}")
        return places, end

    def _around(self, turns: Sequence[str], marks: Sequence[str]) -> list[str]:
        """The template's text before each mark, and behind the last."""
        rest, found = self._template.dialog(turns), []
        for mark in marks:
            before, present, rest = rest.partition(mark)
            if not present or mark in rest:
                raise self._template.error(f"does not write every turn of a conversation once and in order: {_REMEDY}")
            found.append(before)
        return [*found, rest]


def _begin(wholes: Sequence[list[int]], starts: Sequence[list[int]]) -> bool:
    return all(whole[: len(start)] == start for whole, start in zip(wholes, starts, strict=True))
