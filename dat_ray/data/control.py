"""Control tokens as text: how other people's text is kept from becoming one.

Where a text is tokenized by itself it is split into ordinary tokens (`plain_ids`). Where it goes into a prompt that is tokenized
as a whole, control tokens and all, their strings are taken out of it first (`take_out`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text alone; a special token written in it is a handful of ordinary ones."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def is_blank(token: str) -> bool:
    """Whether a token is white space; SentencePiece writes a space as a sign."""
    return not token.replace("▁", " ").strip()


def controls(token: AddedToken, template: str) -> bool:
    """Whether a token of its own tells a model something else than text does.

    Args:
        token: of a tokenizer's added ones.
        template: of the prompts. A token that it writes counts although it is not marked as special (Qwen3's `<think>`);
            others, such as Gemma's line breaks, are text.
    """
    return token.special or (str(token) in template and not is_blank(str(token)))


def control_strings(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """Texts that the tokenizer would read as control tokens, longest first.

    Args:
        tokenizer: of the model that reads.
        template: of the prompts; see `controls`.
    """
    strings = {str(token) for token in tokenizer.added_tokens_decoder.values() if controls(token, template)}
    strings |= {str(token) for token in tokenizer.all_special_tokens}
    return tuple(sorted(strings, key=lambda text: (-len(text), text)))


def take_out(text: str, strings: Iterable[str]) -> str:
    """The text without any of the strings, also where taking one out would join the halves of another."""
    control = [string for string in strings if string]
    while any(string in text for string in control):
        for string in control:
            text = text.replace(string, "")
    return text
