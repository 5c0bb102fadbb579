"""What a run leaves behind when it fails or stalls, for the person who has to find out why."""

from __future__ import annotations

import traceback

from dat_ray.data.shards import write_bytes
from dat_ray.errors import StorageError
from dat_ray.secrets import redact


def keep_traceback(path: str, error: BaseException) -> str:
    """Writes an exception with its traceback to a file of the run's logs.

    Returns:
        "details: PATH", or why there are none: a full disk must not hide the error that it caused.
    """
    try:
        write_bytes(path, redact("".join(traceback.format_exception(error))).encode())
    except StorageError:
        return "no details, since the logs cannot be written"
    return f"details: {path}"
