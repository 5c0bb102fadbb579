"""Row ids: a hash of what determines the row, and the row's own seed."""

from __future__ import annotations

import hashlib
import json


def row_id(*parts: str | int | float | None) -> str:
    """16 hex digits of the sha256 of the parts, written as canonical JSON."""
    canonical = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def seed_from_id(identifier: str) -> int:
    """A seed in [0, 2**63) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") >> 1
