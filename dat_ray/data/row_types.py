"""What the rows of the stored tables are in Python: column to value, as `dat_ray.data.schemas` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
# One, and some, that are read and not changed.
RowView = Mapping[str, Any]
RowViews = Sequence[RowView]
