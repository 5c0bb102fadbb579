"""Where this machine keeps what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$DAT_CACHE`, or `~/.cache/dat_ray`."""
    return Path(os.environ.get("DAT_CACHE") or "~/.cache/dat_ray").expanduser()
