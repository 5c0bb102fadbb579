"""Shared fixtures: the public data sets, which lie beside the project and are not part of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests share two cores: one OpenMP thread each keeps timings and results steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray makes its workers nicer than whatever else a busy machine runs: beside two busy processes they stood still.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests run on two workers: those with clusters and engines one after another on the first, the others by file.

    A file stays in one piece, so that what its tests share is made once.
    """
    here = Path(__file__).parent
    for item in items:
        room = item.path.relative_to(here)
        alone = room.parts[0] in {"gpu", "models", "ray"}
        item.add_marker(pytest.mark.xdist_group("clusters and engines" if alone else str(room)))


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of the public data sets; tests that need them skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets are not beside the project (../shared/data)")
    return folder
