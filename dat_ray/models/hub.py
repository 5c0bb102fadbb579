"""What the hub's client raises when something cannot be had of a hub."""

from __future__ import annotations


def hub_errors() -> tuple[type[Exception], ...]:
    """Errors of a hub that refuses or does not answer, of a connection that breaks, and of a cache that cannot be used.

    Not all of a broken connection are of the hub's own kinds: the base is the one of the HTTP library that its client uses.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_error = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return (http_error, LocalEntryNotFoundError, OSError)
