"""Tokenizes the pieces of a text so that together they are the tokens of the whole.

A byte-level tokenizer needs nothing for that. One in the style of SentencePiece puts a space before a text's first word, and
by that would put one into the middle of the whole: " [/INST]" + "Sure" has another token than " [/INST]Sure". So a piece has
two forms: *first*, as the tokenizer has it, and *continued*, without that space.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dat_ray.data.control import controls, plain_ids


class TokenizerForms:
    """The two forms of one tokenizer.

    Args:
        tokenizer: of the model; left as it is.
        template: text of its chat template, whose tokens no text becomes, marked as special or not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "") -> None:
        self._tokenizer, self._template = tokenizer, template

    def whole(self, rendered: str) -> list[int]:
        """Token ids of a rendered conversation, control tokens read as such."""
        ids: list[int] = self._tokenizer(rendered, add_special_tokens=False, split_special_tokens=False).input_ids
        return ids

    def ids(self, text: str, *, continued: bool) -> list[int]:
        """Token ids of text; control tokens written in it are plain text.

        Args:
            text: a piece.
            continued: other text stands before it.
        """
        done: list[int] = []
        while True:
            ids = self._encode(text, continued)
            spelled = [self.control[token] for token in self.control.keys() & set(ids)]
            starts = [text.index(written) for written in spelled if len(written) > 1 and written in text]
            if not starts:
                return done + ids
            # A vocabulary that has its control tokens among the pieces (Unigram) can spell one, and any spells those that are
            # not marked: it is cut in two.
            cut = min(starts) + 1
            done += self._encode(text[:cut], continued)
            text, continued = text[cut:], True

    def text(self, ids: Sequence[int], *, continued: bool) -> str:
        """Text of tokens without the control tokens among them: what `ids` was given.

        Args:
            ids: of a piece.
            continued: other text stands before it, so that a space at its start counts.
        """
        if not continued:
            return self._decode(list(ids))
        # A decoder drops the space before a text's first word, so the piece gets a word in front.
        anchor = self.ids("a", continued=True)
        return self._decode([*anchor, *ids])[len(self._decode(anchor)) :]

    def _encode(self, text: str, continued: bool) -> list[int]:
        if continued and self._continuing is not None:
            return self._continuing.encode(text, add_special_tokens=False).ids
        return plain_ids(self._tokenizer, text)

    @functools.cached_property
    def control(self) -> dict[int, str]:
        """Id and text of each token that no text becomes, that for unknown characters included."""
        tokens = self._tokenizer.added_tokens_decoder
        added = {i: str(token) for i, token in tokens.items() if controls(token, self._template)}
        return added | dict(zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True))

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    @functools.cached_property
    def _continuing(self) -> Tokenizer | None:
        """The tokenizer without the space before a text's first word; None where it puts none."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        state = json.loads(backend.to_str())
        changed = [_without_first_space(state, part) for part in ("normalizer", "pre_tokenizer")]
        if not any(changed):
            return None
        # What a tokenizer adds around a text, and how it cuts and pads, belong to the whole.
        found = Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))
        found.encode_special_tokens = True
        return found


def _without_first_space(parent: Any, key: str | int) -> bool:
    """Takes what adds the space out of a tokenizer's step (of a list of steps), in place; says whether there was any."""
    step = parent[key]
    if step is None:
        return False
    kind = step["type"]
    if kind == "Sequence":
        steps = step["normalizers" if "normalizers" in step else "pretokenizers"]
        changed = [_without_first_space(steps, i) for i in range(len(steps))]
        return any(changed)
    if kind == "Prepend":
        parent[key] = {"type": "Sequence", "normalizers": []}
        return True
    if kind == "Metaspace":
        parent[key] = {**step, "prepend_scheme": "never"}
        return bool(step["prepend_scheme"] != "never")
    if kind == "ByteLevel" and step["add_prefix_space"]:
        parent[key] = {**step, "add_prefix_space": False}
        return True
    return False
