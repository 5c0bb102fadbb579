"""Shared fixtures: the public data sets, which lie beside the project and are not part of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Tests share two cores: one OpenMP thread each keeps timings and results steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray makes its workers nicer than whatever else a busy machine runs: beside two busy processes they stood still.
os.environ.setdefault("RAY_worker_niceness", "0")

# No test depends on how fast the machine is. Where only those of a GPU run, hypothesis need not be there.
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `-n 2` shares the tests out.

    Those with clusters and engines run one after another in one process, the others in whichever is free, file by file: a file
    stays in one piece, so that what its tests share is made once.
    """
    # Where tests are not shared out, as on a GPU machine, xdist need not be there.
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "clusters and engines" if path.startswith(("tests/gpu/", "tests/models/", "tests/ray/")) else path

    return ByRoom(config, log)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of the public data sets; tests that need them skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets are not beside the project (../shared/data)")
    return folder
