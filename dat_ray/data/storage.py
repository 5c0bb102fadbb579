"""Opens the storage behind a URI; what cannot be opened or asked is one line that names the address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.fs as pafs

from dat_ray.errors import InputError, UnreachableStorage, one_line

# Of one call to Google's storage. Its library would try for 15 minutes, in which no signal reaches this process.
GCS_RETRY_SECONDS = 60


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path on it of a URI.

    Raises:
        InputError: no kind of storage that can be opened, or no URI that can be parsed.
        UnreachableStorage: the storage cannot be reached, as where its host is not known.
    """
    settings = _settings(uri)
    try:
        with answers_of(uri):
            opened: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(f"{uri}?{urlencode(settings)}" if settings else uri)
            return opened
    except pa.ArrowInvalid as error:
        raise InputError("URI", uri, f"names no storage ({_first_words(error)}): use a path, s3:// or gs://") from error


def _settings(uri: str) -> dict[str, str | int]:
    """What pyarrow takes as a part of a URI, and does not look for in the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if uri.startswith("s3://") and endpoint:
        scheme, _, address = endpoint.rstrip("/").rpartition("://")
        return {"endpoint_override": address, "scheme": scheme or "https"}
    return {"retry_limit_seconds": GCS_RETRY_SECONDS} if uri.startswith(("gs://", "gcs://")) else {}


@contextmanager
def answers_of(path: str) -> Iterator[None]:
    """Turns what a storage answers to a question into one line that names the path.

    Raises:
        UnreachableStorage: it has no answer (no such host, no permission, out of reach), or no such file.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UnreachableStorage(f"{path} is not there: restore it, or run again what writes it") from error
    except OSError as error:
        check = "check the address, the credentials and the network" if "://" in path else "check the path"
        raise UnreachableStorage(f"{path} cannot be reached ({_first_words(error)}): {check}") from error


def _first_words(error: Exception) -> str:
    """The beginning of what a storage's library says, which may go on for pages."""
    return one_line(str(error).partition("\n")[0])[:300]
