"""What no file can hold: halves of surrogate pairs, which JSON can escape and a model can stop between."""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def clean_text(text: str) -> str:
    """The text as UTF-8 can hold it: both halves of a surrogate pair are put together, and a half alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
