"""Text of others on one line of a terminal: what a model, a server or a stored file says can neither move the cursor nor
begin a line of its own."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text in one line. Line breaks and tabs become spaces; escapes, controls, marks that turn the direction of writing,
    and half characters are written out, as in `\x1b`."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _written_out(character) for character in text)


def _written_out(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode()
